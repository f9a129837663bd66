"""The algorithm, written once for every backend: sort, gather, walk the unordered rectangles.

Forward M²D and backward 3M²D multiply-adds counted as two flops, since each unordered pair is computed once. Nothing of size
M x M is kept: a rectangle of the gradient lives in a workspace of fixed size, and between forward and backward only the rows,
a few numbers a row are saved, and as many dot products as the backend's ``kept_bytes`` hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import _many_domains
from ._backend import Backend, Strip
from ._layout import (
    FEW_DOMAINS,
    Known,
    Layout,
    Panel,
    Rectangle,
    domains_apart,
    empty_layout,
    padded_rows,
    panels_of_sizes,
    panels_of_tiles,
    rectangles,
    uniform_panels,
)
from ._problem import Problem, Statistics, Tables


class Forward(NamedTuple):
    loss: Tensor  # (M,): of each row, 0 where there is no positive
    num_positives: Tensor  # (M,) int32
    dots: Tensor  # dot products of the first rectangles
    statistics: Statistics
    layout: Layout


def mp_nce_forward(
    backend: Backend,
    z: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    tables: Tables,
    known: Known,
    normalize: bool,
    keep: bool,
) -> Forward:
    """The loss of each row, and what the backward pass needs; ``keep`` says whether there will be one."""
    m, k = z.shape[0], len(tables.temperature)
    if not domains_apart(m, k, backend.block):
        layout = Layout(*(t.zero_() for t in empty_layout(m, k, padded_rows(m, k, backend.block), backend.block, z)))
        statistics = _many_domains.forward(z, sample_ids, domain_ids, tables, normalize, len(layout.order))
        slot, dots = torch.arange(m, device=z.device), statistics.lse.new_empty(0)
    else:
        layout = backend.sort_rows(sample_ids, domain_ids, k, tables.domain_mask, known.sizes)
        problem = _problem(backend, z, layout, tables, known, normalize)
        lse = torch.full_like(problem.inv_norm, -torch.inf)
        # Zeros, since it is an output of the operator: not all of it is written.
        dots = lse.new_zeros(kept_elements(backend, len(lse), k, lse.dtype, keep))
        strips = list(_strips(backend, problem, dots))
        for strip in strips:
            backend.similarity_lse(problem, strip, lse)
        statistics, slot = backend.positives_forward(problem, strips, lse), layout.slot
    mean = statistics.loss / statistics.count.clamp(min=1)
    loss, count = (torch.where(slot >= 0, x[slot], 0) for x in (mean, statistics.count))
    return Forward(loss, count, dots, statistics, layout)


def mp_nce_backward(
    backend: Backend,
    grad: Tensor,
    z: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    tables: Tables,
    known: Known,
    dots: Tensor,
    statistics: Statistics,
    layout: Layout,
    normalize: bool,
    need_embeddings: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """From (M,) ``grad`` those of embeddings (None unless needed), temperature and offset (upper triangles)."""
    m, k = z.shape[0], len(tables.temperature)
    apart = domains_apart(m, k, backend.block)
    # H is kept near 1 whatever the gradient's size, for the sake of 16-bit workspaces; `factor` comes in at the end.
    factor = grad.abs().amax() if m > 0 else grad.new_zeros(())
    upstream = torch.zeros_like(statistics.lse)
    if m > 0:
        row = layout.order if apart else torch.arange(len(upstream), device=z.device).clamp(max=m - 1)
        upstream = grad[row] / torch.where(factor > 0, factor, 1)
    share = torch.where(statistics.count > 0, upstream / statistics.count, 0)
    if not apart:
        grad_z, sums = _many_domains.backward(
            z, sample_ids, domain_ids, tables, statistics, share, normalize, need_embeddings
        )
        grad_z = None if grad_z is None else grad_z.mul_(factor).to(z.dtype)
        return grad_z, *_table_gradients(*_balanced(sums), factor, tables.temperature)

    problem = _problem(backend, z, layout, tables, known, normalize)
    rows, lse = problem.rows, statistics.lse
    coefficient = statistics.slope * share
    if _is_narrow(rows) and len(rows):
        gain = _gain(_largest(coefficient, share, tables.weight), tables.temperature)
        share, coefficient, factor = share * gain, coefficient * gain, factor / gain
    grad_rows = torch.zeros_like(rows, dtype=lse.dtype) if need_embeddings else None
    packed = backend.pack_rows(rows) if need_embeddings else None
    sums = torch.zeros(2, k, k, 2, dtype=torch.float64, device=rows.device)
    work = backend.workspace(rows, min(backend.panel_rows(rows), len(rows)))
    for strip in _strips(backend, problem, dots):
        h, h_transposed = backend.similarity_grad(problem, strip, lse, coefficient, share, sums, work)
        if grad_rows is not None:
            _multiply(backend, grad_rows, packed, strip.rectangle, h, h_transposed)
    del packed, work
    grad_z = None
    if grad_rows is not None:
        grad_z = backend.scatter_rows(grad_rows, z, layout.slot, problem.inv_norm, factor, normalize)
    return grad_z, *_table_gradients(*_balanced(sums), factor, tables.temperature)


def _problem(backend: Backend, z: Tensor, layout: Layout, tables: Tables, known: Known, normalize: bool) -> Problem:
    return Problem(*backend.gather_rows(z, layout.order, normalize), layout, *tables, known)


def _largest(coefficient: Tensor, share: Tensor, weight: Tensor) -> Tensor:
    """A bound of |H|. With weights of one sign no term of a positive exceeds the sum of them all, the coefficient."""
    of_positives = torch.where((weight < 0).any(), weight.abs().amax() * share.abs().amax(), 0)
    return 2 * torch.maximum(coefficient.abs().amax(), of_positives)


def _balanced(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(K, K) sums of H and of H s over all pairs, from those of negatives and of positives, (2, K, K, 2).

    The loss does not change if all similarities move by one number: Σ H is 0, and so is the gradient of an offset that all pairs
    share. What rounding leaves of that sum is taken from the negatives, from each pair of domains as much as it has of them.
    """
    h = sums[0, ..., 0] + sums[1, ..., 0]
    size = sums[0, ..., 0].abs()
    whole = size.sum()
    h -= size.div_(torch.where(whole > 0, whole, 1)).mul_(h.sum())
    return h, sums[0, ..., 1] + sums[1, ..., 1]


def _table_gradients(h: Tensor, h_s: Tensor, factor: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of temperature and offset from the sums of H and of H s over each pair of domains."""
    grad_offset, grad_temperature = (x.to(temperature.dtype).mul(-factor).div_(temperature) for x in (h, h_s))
    return grad_temperature, grad_offset


def similarity_forward(
    backend: Backend,
    x: Tensor,
    y: Tensor,
    x_domains: Tensor,
    y_domains: Tensor,
    temperature: Tensor,
    offset: Tensor,
    normalize: bool,
) -> Tensor:
    """The (Mx, My) matrix of s."""
    x_rows, y_rows = (backend.gather_rows(z, _padded_order(z, backend.block), normalize)[0] for z in (x, y))
    return backend.similarity_matrix(x_rows, y_rows, x_domains, y_domains, temperature, offset)


def similarity_backward(
    backend: Backend,
    grad: Tensor,
    s: Tensor,
    x: Tensor,
    y: Tensor,
    x_domains: Tensor,
    y_domains: Tensor,
    temperature: Tensor,
    normalize: bool,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients with respect to x and y (None unless needed), temperature and offset."""
    (x_rows, x_inv_norm), (y_rows, y_inv_norm) = (
        backend.gather_rows(z, _padded_order(z, backend.block), normalize) for z in (x, y)
    )
    sums = torch.zeros(*temperature.shape, 2, dtype=torch.float64, device=x.device)
    grad_x = torch.zeros_like(x_rows, dtype=s.dtype) if need_x else None
    grad_y = torch.zeros_like(y_rows, dtype=s.dtype) if need_y else None
    x_packed, y_packed = backend.pack_rows(x_rows), backend.pack_rows(y_rows)
    factor = torch.ones((), dtype=s.dtype, device=s.device)
    if _is_narrow(x_rows) and grad.numel():
        gain = _gain(grad.abs().amax(), temperature)
        grad, factor = grad * gain, factor / gain
    grad = grad.to(s.dtype).contiguous()
    panel = backend.panel_rows(x_rows)
    mx, my = s.shape
    for i in range(0, mx, panel):
        for j in range(0, my, panel):
            part = slice(i, min(i + panel, mx)), slice(j, min(j + panel, my))  # without the padding slots
            g, g_transposed = backend.similarity_matrix_grad(
                grad[part], s[part], x_domains[part[0]], y_domains[part[1]], temperature, sums, x_rows
            )
            if grad_x is not None:
                backend.accumulate(grad_x[part[0]], g, y_packed[part[1]])
            if grad_y is not None:
                backend.accumulate(grad_y[part[1]], g_transposed, x_packed[part[0]])

    def scattered(grad_rows: Tensor | None, z: Tensor, inv_norm: Tensor) -> Tensor | None:
        if grad_rows is None:
            return None
        in_place = torch.arange(z.shape[0], device=z.device)
        return backend.scatter_rows(grad_rows, z, in_place, inv_norm, factor, normalize)

    grads = scattered(grad_x, x, x_inv_norm), scattered(grad_y, y, y_inv_norm)
    return *grads, *_table_gradients(sums[..., 0], sums[..., 1], factor, temperature)


def kept_elements(backend: Backend, slots: int, num_domains: int, dtype: torch.dtype, keep: bool) -> int:
    """How many dot products the forward pass keeps: all of a small problem, some of a large one. ``slots`` may be symbolic."""
    if not keep or num_domains > FEW_DOMAINS:  # which may not be apart
        return 0
    return torch.sym_min(backend.kept_bytes // dtype.itemsize, slots * slots)


def _strips(backend: Backend, problem: Problem, dots: Tensor) -> Iterator[Strip]:
    """Every rectangle, with its part of ``dots`` as long as that lasts."""
    block, used, allowed = backend.block, 0, problem.known.allowed
    if backend.known_on_host and problem.domain_mask is not None:
        allowed = problem.domain_mask.flatten().tolist()
    for rectangle in rectangles(_panels(backend, problem), len(problem.temperature), allowed):
        i0, i1, j0, j1 = rectangle
        rows, cols = (-(-length // block) * block for length in (i1 - i0, j1 - j0))
        part = dots[used : used + rows * cols]
        if fits := len(part) == rows * cols:
            used += rows * cols
        yield Strip(rectangle, part.view(rows, cols) if fits else None)


def _panels(backend: Backend, problem: Problem) -> list[Panel]:
    """Panels end with their domain where masked pairs of domains can be left out for it; kernels skip other masked tiles."""
    side, known = backend.panel_rows(problem.rows), problem.known
    if backend.known_on_host:
        return panels_of_tiles(problem.layout.tiles, backend.block, side)
    if known.sizes is not None and known.allowed is not None and not all(known.allowed):
        return panels_of_sizes(known.sizes, backend.block, side)
    return uniform_panels(0, len(problem.rows), backend.block, side)


def _multiply(
    backend: Backend, grad_rows: Tensor, packed: Tensor, rectangle: Rectangle, h: Tensor, h_transposed: Tensor
) -> None:
    """The second product: both sides of an unordered rectangle from the one H."""
    i0, i1, j0, j1 = rectangle
    backend.accumulate(grad_rows[i0:i1], h, packed[j0:j1])
    if not rectangle.diagonal:
        backend.accumulate(grad_rows[j0:j1], h_transposed, packed[i0:i1])


def _is_narrow(rows: Tensor) -> bool:
    """H / τ is kept in the dtype of the rows, and these two have no room for weights of any size."""
    return rows.dtype in (torch.float16, torch.int16)


def _gain(largest: Tensor, temperature: Tensor) -> Tensor:
    """A power of two that brings the largest H / τ to about 2^14."""
    bound = largest / temperature.amin()
    return torch.where(bound > 0, torch.exp2(14 - bound.log2().ceil()), 1.0)


def _padded_order(z: Tensor, block: int) -> Tensor:
    """Input order, padded with empty slots to whole tiles."""
    m = z.shape[0]
    order = torch.arange(padded_rows(m, 1, block), device=z.device)
    return torch.where(order < m, order, -1)
