"""The algorithm, written once for every objective and backend: sort, gather, walk the unordered rectangles.

Forward M²D and backward 3M²D multiply-adds counted as two flops, since each unordered pair is computed once; Q candidates add
2MQD and up to 6MQD. Nothing of size M x M is kept: a rectangle of the gradient lives in a workspace of fixed size, and between
forward and backward a few numbers a row are saved, and as many dot products as the backend's ``kept_bytes`` hold.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _known, _many_domains, _objectives
from ._backend import Backend, Strip
from ._layout import (
    FEW_DOMAINS,
    Layout,
    domains_apart,
    empty_layout,
    padded_rows,
    roomy_rows,
    starts_of,
)
from ._objectives import OBJECTIVES
from ._panels import panels_of, rectangles
from ._problem import (
    Groups,
    Inputs,
    Negatives,
    Objective,
    Options,
    Problem,
    Statistics,
    Tables,
    Terms,
    accumulator_dtype,
)
from ._rows import Rows, is_grouped, joined, sets_of, tables_of
from ._scaling import gain_of, is_narrow, table_gradients
from ._tables import mirrored

#: Own rows with each other and with candidates, if there are any: pairs of sets.
WITH_CANDIDATES = frozenset({(0, 0), (0, 1)})


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
    k, sets = inputs.temperature.shape[0], sets_of(inputs)
    counts = [s.z.shape[0] for s in sets]
    *_, slots = _edges(backend, counts, k, [sizes])
    return Saved(
        tables=z.new_empty(2, k, k, dtype=accumulator),
        dots=z.new_empty(_kept_elements(backend, k, slots, accumulator, keep), dtype=accumulator),
        statistics=Statistics(*(z.new_empty(slots, dtype=t) for t in (*(accumulator,) * 3, torch.int32))),
        layout=empty_layout(sum(counts), len(sets) * k, slots, backend.block, z, grouped=is_grouped(sets)),
    )


def forward(backend: Backend, inputs: Inputs, options: Options, keep: bool) -> Forward:
    """The loss of each row, and what the backward pass needs; ``keep`` says whether there will be one."""
    objective, k = OBJECTIVES[options.objective], inputs.temperature.shape[0]
    symmetric = mirrored(inputs.temperature, inputs.offset)
    backend.check_values(inputs._replace(temperature=symmetric[0], offset=symmetric[1]), options)
    rows = joined(sets_of(inputs), k, options.ignore_domains)
    *_, slots = _edges(backend, rows.counts, k, [options.domain_sizes])
    tables = Tables(*symmetric, inputs.weight, inputs.domain_mask)
    dots = symmetric.new_zeros(_kept_elements(backend, k, slots, symmetric.dtype, keep))  # not all of it is written
    if domains_apart(rows.own, k, backend.block):
        problem = make_problem(backend, rows, tables, options, WITH_CANDIDATES)
        todo, layout = list(strips(backend, problem, dots)), problem.layout
        if keep and not backend.known_on_host:
            _ask(backend, problem, inputs, options)
        negatives = sum_negatives(backend, problem, todo)
        positives = backend.positives_forward(problem, todo, base_of(objective, negatives))
        loss, statistics = _objectives.of_rows(objective, negatives, positives)
        slot = layout.slot[: rows.own]
    else:
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
    rows = joined(sets_of(inputs), k, options.ignore_domains)
    tables = Tables(*saved.tables, inputs.weight, inputs.domain_mask)
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
        grad_z, sums = _many_domains.backward(
            objective, rows, tables, terms, options.normalize, need_embeddings, need_candidates
        )

        def grad_of(own: bool, z: Tensor) -> Tensor:
            part = grad_z[: rows.own] if own else grad_z[rows.own :]
            return (part * factor).to(z.dtype)
    else:
        problem = make_problem(backend, rows, tables, options, WITH_CANDIDATES, saved.layout)
        terms, factor = narrowed(problem, terms, factor)
        wanted = len(problem.rows) if need_candidates else problem.own_slots if need_embeddings else 0
        grad_rows = torch.zeros_like(problem.rows[:wanted], dtype=upstream.dtype)
        sums = add_gradient(backend, problem, strips(backend, problem, saved.dots), terms, grad_rows)
        if len(rows.counts) > 1:
            sums = folded(sums, k, dict.fromkeys(problem.met, 1.0))

        def grad_of(own: bool, z: Tensor) -> Tensor:
            slot = saved.layout.slot[: rows.own] if own else saved.layout.slot[rows.own :]
            return backend.scatter_rows(grad_rows, z, slot, problem.inv_norm, factor, options.normalize)

    return Gradients(
        grad_of(True, inputs.embeddings) if need_embeddings else None,
        grad_of(False, inputs.candidates) if need_candidates else None,
        *gradients_of_tables(objective, sums, factor, saved.tables[0]),
    )


def make_problem(
    backend: Backend,
    rows: Rows,
    tables: Tables,
    options: Options,
    met: Collection[tuple[int, int]],
    layout: Layout | None = None,
    roomy: bool = False,
    filled: Sequence[Sequence[int]] | None = None,
) -> Problem:
    """Of the pairs of sets that are ``met``; ``tables`` are (K, K).

    With ``roomy`` domains get tiles of their own in any case; ``filled`` says then, if known, how many rows but padding each
    domain of each set has.
    """
    k, num_sets, own_sizes = len(tables.temperature), len(rows.counts), None if roomy else options.domain_sizes
    sizes = filled or [own_sizes] + [None] * (num_sets - 1)
    edges = _edges(backend, rows.counts, k, sizes, roomy)
    given = mask = tables.domain_mask
    if (0, 0) not in met:  # kernels of positives look for them among all rows
        compared = torch.ones(num_sets, num_sets, dtype=torch.bool, device=rows.z.device)
        compared[0, 0] = False
        mask = torch.kron(compared, torch.ones_like(tables.temperature, dtype=torch.bool) if mask is None else mask)
    elif mask is not None:
        mask = mask.repeat(num_sets, num_sets)
    tables = tables_of(tables._replace(domain_mask=None), num_sets)._replace(domain_mask=mask)
    if layout is None:
        starts = starts_of(rows, k, own_sizes, edges, backend.block)
        ids = rows.sample_ids, rows.domain_ids
        layout = backend.sort_rows(*ids, num_sets * k, mask, edges[-1], starts)
        if rows.group_ids is not None:
            layout = layout._replace(groups=F.pad(rows.group_ids, (0, 1), value=-1)[layout.order])  # -1 is the last one
    same = Groups(layout.ids, layout.tiles)
    excluded = same if rows.group_ids is None else Groups(layout.groups, layout.group_tiles(backend.block))
    unit, inv_norm = backend.gather_rows(rows.z, layout.order, options.normalize)
    tiles, allowed = _on_host(backend, layout, given, options.allowed_pairs, k)
    panels = panels_of(tiles, sizes, edges, backend.block, backend.panel_rows(unit), allowed, backend.overhead)
    objective = OBJECTIVES[options.objective]
    return Problem(objective, unit, inv_norm, layout, edges, met, excluded, same, tables, panels, allowed)


def sum_negatives(backend: Backend, problem: Problem, todo: Sequence[Strip]) -> Negatives:
    """Of each slot."""
    lowest, zero = torch.full_like(problem.inv_norm, -torch.inf), torch.zeros_like(problem.inv_norm)
    softmax = problem.objective.negatives == "softmax"
    negatives = Negatives(lowest, lowest.new_empty(0)) if softmax else Negatives(zero, lowest)
    for strip in todo:
        backend.negatives_forward(problem, strip, negatives)
    return negatives


def base_of(objective: Objective, negatives: Negatives) -> Tensor:
    """What positives of kind "sigmoid" are compared with."""
    return negatives.total if objective.negatives == "softmax" else torch.zeros_like(negatives.total)


def narrowed(problem: Problem, terms: Terms, factor: Tensor) -> tuple[Terms, Tensor]:
    """Terms whose H fits the dtype of the rows, and what its products are to be multiplied by."""
    if not is_narrow(problem.rows) or len(problem.rows) == 0:
        return terms, factor
    bound = _objectives.largest(problem.objective, terms, problem.tables.weight)
    gain = gain_of(bound, problem.tables.temperature)
    return terms.scaled(gain), factor / gain


def add_gradient(backend: Backend, problem: Problem, todo: Iterable[Strip], terms: Terms, grad_rows: Tensor) -> Tensor:
    """Adds H / τ times the rows to ``grad_rows``, the first slots; returns the sums of ``Backend.similarity_grad``."""
    packed = backend.pack_rows(problem.rows) if len(grad_rows) else None
    sums = torch.zeros(2, *problem.tables.temperature.shape, 2, dtype=torch.float64, device=grad_rows.device)
    work = backend.workspace(problem.rows, min(backend.panel_rows(problem.rows), len(problem.rows)))
    for strip in todo:
        i0, i1, j0, j1 = strip.rectangle
        both_sides = i0 < j0 < len(grad_rows)  # of an unordered rectangle, from the one H
        h, h_transposed = backend.similarity_grad(problem, strip, terms, sums, work, both_sides)
        if i0 < len(grad_rows):
            backend.accumulate(grad_rows[i0:i1], h, packed[j0:j1])
        if both_sides:
            backend.accumulate(grad_rows[j0:j1], h_transposed, packed[i0:i1])
    return sums


def folded(sums: Tensor, k: int, shares: Mapping[tuple[int, int], float]) -> Tensor:
    """Sums over pairs of domains (2, S K, S K, 2) as (2, K, K, 2), where pairs of sets count for their share."""
    total = torch.zeros_like(sums[:, :k, :k])
    for (a, b), share in shares.items():
        part = sums[:, a * k : (a + 1) * k, b * k : (b + 1) * k]
        if a < b:  # its domains come in either order
            part = part.permute(0, 3, 1, 2)
            part = (part.triu() + part.tril(-1).mT).permute(0, 2, 3, 1)
        total += share * part
    return total


def gradients_of_tables(
    objective: Objective, sums: Tensor, factor: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Upper triangles, of temperature and of offset; ``sums`` is used up."""
    h, h_s = _balanced(sums) if objective.negatives == "softmax" else sums.sum(0).unbind(-1)
    return table_gradients(h, h_s, factor, temperature)


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


def _edges(
    backend: Backend,
    counts: Sequence[int],
    num_domains: int,
    sizes: Sequence[Sequence[int] | None],
    roomy: bool = False,
) -> list[int]:
    """Where the slots of each set end; ``sizes``: rows of each domain, if known. Own domains are apart unless it is ``roomy``."""
    slots = []
    for place, (n, of) in enumerate(itertools.zip_longest(counts, sizes)):
        if of is None and (roomy or place > 0):
            slots.append(roomy_rows(n, num_domains, backend.block))
        else:
            slots.append(padded_rows(n, num_domains, backend.block, of))
    return list(itertools.accumulate(slots))


def _kept_elements(backend: Backend, num_domains: int, slots: int, dtype: torch.dtype, keep: bool) -> int:
    """How many dot products the forward pass keeps: all of a small problem, some of a large one."""
    if not keep or num_domains > FEW_DOMAINS:  # which may not be apart
        return 0
    return torch.sym_min(backend.kept_bytes // dtype.itemsize, slots * slots)


def strips(backend: Backend, problem: Problem, dots: Tensor) -> Iterator[Strip]:
    """The rectangles of the pairs of sets that are met, with their parts of ``dots`` as long as that lasts."""
    block, used = backend.block, 0
    for rectangle in rectangles(problem.panels, problem.allowed):
        i0, i1, j0, j1 = rectangle
        if (bisect.bisect_right(problem.edges, i0), bisect.bisect_right(problem.edges, j0)) not in problem.met:
            continue
        rows, cols = (-(-length // block) * block for length in (i1 - i0, j1 - j0))
        part = dots[used : used + rows * cols]
        if fits := len(part) == rows * cols:
            used += rows * cols
        yield Strip(rectangle, part.view(rows, cols) if fits else None)


def _on_host(
    backend: Backend, layout: Layout, mask: Tensor | None, pairs: Sequence[bool] | None, k: int
) -> tuple[list[tuple[int, int]] | None, list[Sequence[bool]] | None]:
    """The domain of each tile and how many of its slots count, and the mask, where the host knows them."""
    if backend.known_on_host:
        return layout.tiles[:, :2].tolist(), None if mask is None else mask.tolist()
    if answer := _known.answer(layout.tiles):  # whole tiles are computed
        return [(domain, backend.block) for domain, *_ in answer[0]], answer[1]
    return None, None if pairs is None else [pairs[a * k : (a + 1) * k] for a in range(k)]


def _ask(backend: Backend, problem: Problem, inputs: Inputs, options: Options) -> None:
    """Have the host know by the backward pass what it doesn't, if its products can leave out masked pairs of domains then."""
    mask, allowed = inputs.domain_mask, problem.allowed
    all_known = allowed is not None and options.domain_sizes is not None and inputs.candidates is None
    if mask is None or all_known or (allowed is not None and all(map(all, allowed))):
        return
    if len(problem.rows) > backend.panel_rows(problem.rows):
        _known.ask(problem.layout.tiles, mask)
