"""The algorithm, written once for every objective and backend: sort, gather, walk the unordered rectangles.

Forward M²D and backward 3M²D multiply-adds counted as two flops, since each unordered pair is computed once; Q candidates add
2MQD and up to 6MQD. Nothing of size M x M is kept: a rectangle of the gradient lives in a workspace of fixed size, and between
forward and backward a few numbers a row are saved, and as many dot products as the backend's ``kept_bytes`` hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _many_domains, _objectives
from ._backend import Backend, Strip
from ._layout import (
    FEW_DOMAINS,
    Layout,
    Panel,
    Rectangle,
    domains_apart,
    empty_layout,
    padded_rows,
    panels_of_sizes,
    panels_of_tiles,
    rectangles,
    roomy_rows,
    starts_of,
    uniform_panels,
)
from ._objectives import OBJECTIVES
from ._problem import Groups, Inputs, Negatives, Options, Problem, Statistics, Tables, accumulator_dtype
from ._rows import Rows, all_rows, is_grouped, tables_of
from ._scaling import gain_of, is_narrow, table_gradients
from ._tables import mirrored


class Saved(NamedTuple):
    """What the backward pass needs besides the inputs."""

    tables: Tensor  # (2, K, K): temperature and offset, symmetric
    dots: Tensor  # dot products of the first rectangles
    statistics: Statistics
    layout: Layout


class Forward(NamedTuple):
    loss: Tensor  # (M,): of each row, 0 where it is no anchor
    counts: Tensor  # (M,) bool: whether it is an anchor that counts
    saved: Saved


class Gradients(NamedTuple):
    embeddings: Tensor | None
    candidates: Tensor | None
    temperature: Tensor
    offset: Tensor


def empty_saved(backend: Backend, inputs: Inputs, sizes: Sequence[int] | None, keep: bool) -> Saved:
    """Room for what is saved; sizes may be symbolic."""
    z, accumulator = inputs.embeddings, accumulator_dtype(inputs.embeddings.dtype)
    k, (_, slots) = inputs.temperature.shape[0], _slots_of(backend, inputs, sizes)
    m, domains = z.shape[0], k
    if inputs.candidates is not None:
        m, domains = m + inputs.candidates.shape[0], 2 * k
    return Saved(
        tables=z.new_empty(2, k, k, dtype=accumulator),
        dots=z.new_empty(_kept_elements(backend, k, slots, accumulator, keep), dtype=accumulator),
        statistics=Statistics(*(z.new_empty(slots, dtype=t) for t in (*(accumulator,) * 3, torch.int32))),
        layout=empty_layout(m, domains, slots, backend.block, z, grouped=is_grouped(inputs)),
    )


def forward(backend: Backend, inputs: Inputs, options: Options, keep: bool) -> Forward:
    """The loss of each row, and what the backward pass needs; ``keep`` says whether there will be one."""
    objective, k = OBJECTIVES[options.objective], inputs.temperature.shape[0]
    symmetric = mirrored(inputs.temperature, inputs.offset)
    backend.check_values(inputs._replace(temperature=symmetric[0], offset=symmetric[1]), options)
    rows = all_rows(inputs, options.ignore_domains)
    own_slots, slots = _slots_of(backend, inputs, options.domain_sizes)
    dots = symmetric.new_zeros(_kept_elements(backend, k, slots, symmetric.dtype, keep))  # not all of it is written
    if domains_apart(rows.own, k, backend.block):
        tables = tables_of(symmetric, inputs)
        starts = starts_of(rows, k, options.domain_sizes, own_slots, slots, backend.block)
        ids = rows.sample_ids, rows.domain_ids
        layout = backend.sort_rows(*ids, len(tables.temperature), tables.domain_mask, slots, starts)
        if rows.group_ids is not None:
            layout = layout._replace(groups=F.pad(rows.group_ids, (0, 1), value=-1)[layout.order])  # -1 is the last one
        problem = _problem(backend, inputs, rows, tables, layout, options)
        strips = list(_strips(backend, problem, dots))
        softmax = objective.negatives == "softmax"
        running = torch.full_like(problem.inv_norm, -torch.inf), torch.zeros_like(problem.inv_norm)
        negatives = Negatives(running[0], running[0].new_empty(0)) if softmax else Negatives(running[1], running[0])
        for strip in strips:
            backend.negatives_forward(problem, strip, negatives)
        base = negatives.total if softmax else torch.zeros_like(negatives.total)
        positives = backend.positives_forward(problem, strips, base)
        loss, statistics = _objectives.of_rows(objective, negatives, positives)
        slot = layout.slot[: rows.own]
    else:
        tables = Tables(*symmetric, inputs.weight, inputs.domain_mask)
        loss, statistics = _many_domains.forward(objective, rows, tables, options.normalize, slots)
        layout = empty_saved(backend, inputs, options.domain_sizes, keep).layout
        layout = Layout(*(t.zero_() for t in layout))
        slot = torch.arange(rows.own, device=symmetric.device)
    counts = (slot >= 0) & (statistics.count[slot] > 0)
    return Forward(torch.where(counts, loss[slot], 0), counts, Saved(symmetric, dots, statistics, layout))


def backward(
    backend: Backend,
    grad: Tensor,
    inputs: Inputs,
    options: Options,
    saved: Saved,
    need_embeddings: bool,
    need_candidates: bool,
) -> Gradients:
    """From the gradient of each row's loss, (M,), those of the inputs: None unless needed, of tables the upper triangles."""
    objective, k = OBJECTIVES[options.objective], inputs.temperature.shape[0]
    rows = all_rows(inputs, options.ignore_domains)
    apart = domains_apart(rows.own, k, backend.block)
    # H is kept near 1 whatever the gradient's size, for the sake of 16-bit workspaces; `factor` comes in at the end.
    factor = grad.abs().amax() if rows.own else grad.new_zeros(())
    upstream = torch.zeros_like(saved.statistics.lse)
    if rows.own:
        row = saved.layout.order if apart else torch.arange(len(upstream), device=grad.device)
        is_own = (row >= 0) & (row < rows.own)
        upstream = torch.where(is_own, grad[row.clamp(0, rows.own - 1)], 0) / torch.where(factor > 0, factor, 1)
    terms = _objectives.terms(objective, saved.statistics, upstream)

    if not apart:
        tables = Tables(*saved.tables, inputs.weight, inputs.domain_mask)
        grad_z, sums = _many_domains.backward(
            objective, rows, tables, terms, options.normalize, need_embeddings, need_candidates
        )

        def grad_of(own: bool, z: Tensor) -> Tensor:
            part = grad_z[: rows.own] if own else grad_z[rows.own :]
            return (part * factor).to(z.dtype)
    else:
        tables = tables_of(saved.tables, inputs)
        problem = _problem(backend, inputs, rows, tables, saved.layout, options)
        if is_narrow(problem.rows) and len(problem.rows):
            gain = gain_of(_objectives.largest(objective, terms, tables.weight), tables.temperature)
            terms, factor = terms.scaled(gain), factor / gain
        wanted = len(problem.rows) if need_candidates else problem.own_slots if need_embeddings else 0
        grad_rows = torch.zeros_like(problem.rows[:wanted], dtype=upstream.dtype)
        packed = backend.pack_rows(problem.rows) if wanted else None
        sums = torch.zeros(2, *tables.temperature.shape, 2, dtype=torch.float64, device=grad.device)
        work = backend.workspace(problem.rows, min(backend.panel_rows(problem.rows), len(problem.rows)))
        for strip in _strips(backend, problem, saved.dots):
            h, h_transposed = backend.similarity_grad(problem, strip, terms, sums, work)
            _multiply(backend, grad_rows, packed, strip.rectangle, h, h_transposed)
        del packed, work
        if inputs.candidates is not None:
            sums = _folded(sums, k)

        def grad_of(own: bool, z: Tensor) -> Tensor:
            slot = saved.layout.slot[: rows.own] if own else saved.layout.slot[rows.own :]
            return backend.scatter_rows(grad_rows, z, slot, problem.inv_norm, factor, options.normalize)

    h, h_s = _balanced(sums) if objective.negatives == "softmax" else sums.sum(0).unbind(-1)
    return Gradients(
        grad_of(True, inputs.embeddings) if need_embeddings else None,
        grad_of(False, inputs.candidates) if need_candidates else None,
        *table_gradients(h, h_s, factor, saved.tables[0]),
    )


def _problem(backend: Backend, inputs: Inputs, rows: Rows, tables: Tables, layout: Layout, options: Options) -> Problem:
    own_slots, _ = _slots_of(backend, inputs, options.domain_sizes)
    same = Groups(layout.ids, layout.tiles)
    excluded = same if not is_grouped(inputs) else Groups(layout.groups, layout.group_tiles(backend.block))
    allowed = options.allowed_pairs
    if backend.known_on_host and tables.domain_mask is not None:
        allowed = tables.domain_mask.flatten().tolist()
    elif allowed is not None and inputs.candidates is not None:
        k = inputs.temperature.shape[0]
        allowed = torch.tensor(allowed).view(k, k).repeat(2, 2).flatten().tolist()
    unit, inv_norm = backend.gather_rows(rows.z, layout.order, options.normalize)
    sizes = options.domain_sizes
    return Problem(
        OBJECTIVES[options.objective], unit, inv_norm, layout, own_slots, excluded, same, tables, sizes, allowed
    )


def _folded(sums: Tensor, k: int) -> Tensor:
    """Sums of the pairs of domains of own rows and candidates (2, 2 K, 2 K, 2) as those of pairs of domains (2, K, K, 2)."""
    own, mixed = sums[:, :k, :k], sums[:, :k, k:].permute(0, 3, 1, 2)
    return own + (mixed.triu() + mixed.tril(-1).mT).permute(0, 2, 3, 1)


def _balanced(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(K, K) sums of H and of H s over all pairs, from those of negatives and of positives, (2, K, K, 2), in their place.

    The loss does not change if all similarities move by one number: Σ H is 0, and so is the gradient of an offset that all pairs
    share. What rounding leaves of that sum is taken from the negatives, from each pair of domains as much as it has of them.
    """
    negatives, both = sums[0], sums[1].add_(sums[0])
    size, (h, h_s) = negatives[..., 0].abs_(), both.unbind(-1)
    whole = size.sum()
    h -= size.div_(torch.where(whole > 0, whole, 1)).mul_(h.sum())
    return h, h_s


def _slots_of(backend: Backend, inputs: Inputs, sizes: Sequence[int] | None) -> tuple[int, int]:
    """Slots of own rows, and of all."""
    k = inputs.temperature.shape[0]
    own = padded_rows(inputs.embeddings.shape[0], k, backend.block, sizes)
    if inputs.candidates is None:
        return own, own
    return own, own + roomy_rows(inputs.candidates.shape[0], k, backend.block)


def _kept_elements(backend: Backend, num_domains: int, slots: int, dtype: torch.dtype, keep: bool) -> int:
    """How many dot products the forward pass keeps: all of a small problem, some of a large one."""
    if not keep or num_domains > FEW_DOMAINS:  # which may not be apart
        return 0
    return torch.sym_min(backend.kept_bytes // dtype.itemsize, slots * slots)


def _strips(backend: Backend, problem: Problem, dots: Tensor) -> Iterator[Strip]:
    """Every rectangle but those of candidates alone, with its part of ``dots`` as long as that lasts."""
    block, used = backend.block, 0
    panels = _panels(backend, problem)
    for rectangle in rectangles(panels, len(problem.tables.temperature), problem.allowed_pairs):
        i0, i1, j0, j1 = rectangle
        if i0 >= problem.own_slots:
            continue
        rows, cols = (-(-length // block) * block for length in (i1 - i0, j1 - j0))
        part = dots[used : used + rows * cols]
        if fits := len(part) == rows * cols:
            used += rows * cols
        yield Strip(rectangle, part.view(rows, cols) if fits else None)


def _panels(backend: Backend, problem: Problem) -> list[Panel]:
    """Panels end with their domain where masked pairs of domains can be left out for it; kernels skip other masked tiles."""
    side, sizes, allowed = backend.panel_rows(problem.rows), problem.domain_sizes, problem.allowed_pairs
    if backend.known_on_host:
        return panels_of_tiles(problem.layout.tiles, backend.block, side)
    candidates = uniform_panels(problem.own_slots, len(problem.rows), backend.block, side)
    if sizes is not None and allowed is not None and not all(allowed):
        return panels_of_sizes(sizes, backend.block, side) + candidates
    return uniform_panels(0, problem.own_slots, backend.block, side) + candidates


def _multiply(
    backend: Backend, grad_rows: Tensor, packed: Tensor, rectangle: Rectangle, h: Tensor, h_transposed: Tensor
) -> None:
    """The second product: both sides of an unordered rectangle from the one H, as far as they are wanted."""
    i0, i1, j0, j1 = rectangle
    if i0 < len(grad_rows):
        backend.accumulate(grad_rows[i0:i1], h, packed[j0:j1])
    if j0 < len(grad_rows) and not rectangle.diagonal:
        backend.accumulate(grad_rows[j0:j1], h_transposed, packed[i0:i1])
