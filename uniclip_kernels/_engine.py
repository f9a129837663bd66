"""The algorithm, written once for every backend: sort, gather, walk the unordered rectangles, add the sparse positives.

Forward M²D and backward 3M²D multiply-adds counted as two flops, since each unordered pair is computed once. Nothing of size
M x M is kept: a rectangle of the gradient lives in a workspace of fixed size, and between forward and backward only the rows,
lse and one coefficient a row are saved, and as many dot products as the backend's ``kept_bytes`` hold.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._backend import Backend
from ._layout import Known, Panel, Rectangle, padded_rows, panels_of_sizes, panels_of_tiles, rectangles, uniform_panels
from ._problem import Problem


def mp_nce_forward(
    backend: Backend,
    z: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    temperature: Tensor,
    offset: Tensor,
    weight: Tensor,
    domain_mask: Tensor | None,
    known: Known,
    reduction: str,
    normalize: bool,
    keep: bool,
) -> tuple[Tensor, Problem, Tensor, Tensor, Tensor, Tensor]:
    """The loss, and what the backward pass needs: the problem, 1/norm, lse and coefficient, (R,) each, and dot products.

    ``keep`` says whether there will be a backward pass.
    """
    layout = backend.sort_rows(sample_ids, domain_ids, temperature.shape[0], domain_mask, known.sizes)
    rows, inv_norm = backend.gather_rows(z, layout.order, normalize)
    problem = Problem(rows, layout, temperature, offset, weight, domain_mask, known)

    lse = torch.full_like(inv_norm, -torch.inf)
    # Zeros, since it is an output of the operator: not all of it is written.
    kept = lse.new_zeros(kept_elements(backend, len(rows), lse.dtype, keep))
    for rectangle, dots in _walk(backend, problem, kept):
        backend.similarity_lse(problem, rectangle, lse, dots)
    per_slot, coefficient = backend.positives_forward(problem, lse)

    if reduction == "none":
        slot = layout.slot
        loss = torch.where(slot >= 0, per_slot[slot], 0)
    else:
        loss = per_slot.sum() * _reduction_factor(problem, reduction, per_slot)
    return loss, problem, inv_norm, lse, coefficient, kept


def mp_nce_backward(
    backend: Backend,
    grad: Tensor,
    z: Tensor,
    problem: Problem,
    inv_norm: Tensor,
    lse: Tensor,
    coefficient: Tensor,
    kept: Tensor,
    reduction: str,
    normalize: bool,
    need_embeddings: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients with respect to embeddings (None unless needed), temperature and offset (upper triangles)."""
    rows, order = problem.rows, problem.layout.order
    # H is kept near 1 whatever the gradient's size, for the sake of 16-bit workspaces; `factor` comes in at the end.
    if reduction == "none":
        factor = grad.abs().amax() if grad.numel() else grad.new_zeros(())
        scale = (
            torch.where(order >= 0, grad[order] / torch.where(factor > 0, factor, 1), 0) if grad.numel() else lse * 0
        )
    else:
        factor = grad * _reduction_factor(problem, reduction, grad)
        scale = torch.ones_like(lse)
    if _is_narrow(rows) and len(rows):
        gain = _gain(2 * coefficient * scale, problem.temperature)
        scale, factor = scale * gain, factor / gain

    grad_rows = torch.zeros_like(rows, dtype=lse.dtype) if need_embeddings else None
    packed = backend.pack_rows(rows) if need_embeddings else None
    sums = torch.zeros(*problem.temperature.shape, 2, dtype=torch.float64, device=rows.device)
    side = min(backend.panel_rows(rows), rows.shape[0])
    work = backend.workspace(rows, side)
    coefficient = coefficient * scale
    for rectangle, dots in _walk(backend, problem, kept):
        h, h_transposed = backend.similarity_grad(problem, rectangle, lse, coefficient, dots, sums, work)
        if grad_rows is not None:
            _multiply(backend, grad_rows, packed, rectangle, h, h_transposed)
    del packed
    backend.positives_backward(problem, lse, scale, grad_rows, sums)
    del work

    sums = -sums.to(lse.dtype) * factor / problem.temperature[..., None]
    grad_z = None
    if grad_rows is not None:
        grad_z = backend.scatter_rows(grad_rows, z, problem.layout.slot, inv_norm, factor, normalize)
    return grad_z, sums[..., 1].contiguous(), sums[..., 0].contiguous()


def similarity_forward(
    backend: Backend,
    x: Tensor,
    y: Tensor,
    x_domains: Tensor,
    y_domains: Tensor,
    temperature: Tensor,
    offset: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The matrix of s, the gathered rows of x and y, and their 1/norms."""
    x_rows, x_inv_norm = backend.gather_rows(x, _padded_order(x, backend.block), normalize)
    y_rows, y_inv_norm = backend.gather_rows(y, _padded_order(y, backend.block), normalize)
    s = backend.similarity_matrix(x_rows, y_rows, x_domains, y_domains, temperature, offset)
    return s, x_rows, y_rows, x_inv_norm, y_inv_norm


def similarity_backward(
    backend: Backend,
    grad: Tensor,
    s: Tensor,
    x: Tensor,
    y: Tensor,
    x_domains: Tensor,
    y_domains: Tensor,
    temperature: Tensor,
    x_rows: Tensor,
    y_rows: Tensor,
    x_inv_norm: Tensor,
    y_inv_norm: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, y, temperature and offset."""
    sums = torch.zeros(*temperature.shape, 2, dtype=torch.float64, device=x.device)
    grad_x = torch.zeros_like(x_rows, dtype=s.dtype)
    grad_y = torch.zeros_like(y_rows, dtype=s.dtype)
    x_packed, y_packed = backend.pack_rows(x_rows), backend.pack_rows(y_rows)
    factor = torch.ones((), dtype=s.dtype, device=s.device)
    if _is_narrow(x_rows) and grad.numel():
        gain = _gain(grad, temperature)
        grad, factor = grad * gain, factor / gain
    grad = grad.to(s.dtype).contiguous()
    panel = backend.panel_rows(x_rows)
    for i in range(0, len(x), panel):
        for j in range(0, len(y), panel):
            part = slice(i, min(i + panel, len(x))), slice(j, min(j + panel, len(y)))  # without the padding slots
            g, g_transposed = backend.similarity_matrix_grad(
                grad[part], s[part], x_domains[part[0]], y_domains[part[1]], temperature, sums, x_rows
            )
            backend.accumulate(grad_x[part[0]], g, y_packed[part[1]])
            backend.accumulate(grad_y[part[1]], g_transposed, x_packed[part[0]])
    in_place = [torch.arange(len(z), device=z.device) for z in (x, y)]
    sums = -sums.to(s.dtype) * factor / temperature[..., None]
    return (
        backend.scatter_rows(grad_x, x, in_place[0], x_inv_norm, factor, normalize),
        backend.scatter_rows(grad_y, y, in_place[1], y_inv_norm, factor, normalize),
        sums[..., 1].contiguous(),
        sums[..., 0].contiguous(),
    )


def kept_elements(backend: Backend, slots: int, dtype: torch.dtype, keep: bool) -> int:
    """How many dot products the forward pass keeps: all of a small problem, some of a large one."""
    return min(backend.kept_bytes // dtype.itemsize, slots * slots) if keep else 0


def _walk(backend: Backend, problem: Problem, kept: Tensor) -> Iterator[tuple[Rectangle, Tensor | None]]:
    """Every rectangle, with its part of ``kept`` as long as that lasts."""
    block, used, allowed = backend.block, 0, problem.known.allowed
    if backend.known_on_host and problem.domain_mask is not None:
        allowed = problem.domain_mask.flatten().tolist()
    for rectangle in rectangles(_panels(backend, problem), len(problem.temperature), allowed):
        i0, i1, j0, j1 = rectangle
        rows, cols = (-(-length // block) * block for length in (i1 - i0, j1 - j0))
        part = kept[used : used + rows * cols]
        if fits := len(part) == rows * cols:
            used += rows * cols
        yield rectangle, part.view(rows, cols) if fits else None


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


def _reduction_factor(problem: Problem, reduction: str, like: Tensor) -> Tensor | float:
    if reduction == "sum":
        return 1.0
    return 1.0 / (problem.layout.count > 0).sum().clamp(min=1).to(like.dtype)


def _is_narrow(rows: Tensor) -> bool:
    """H / τ is kept in the dtype of the rows, and these two have no room for weights of any size."""
    return rows.dtype in (torch.float16, torch.int16)


def _gain(h: Tensor, temperature: Tensor) -> Tensor:
    """A power of two that brings the largest H / τ to about 2^14."""
    bound = h.abs().amax() / temperature.amin()
    return torch.where(bound > 0, torch.exp2(14 - bound.log2().ceil()), 1.0)


def _padded_order(z: Tensor, block: int) -> Tensor:
    """Input order, padded with empty slots to whole tiles."""
    order = torch.arange(padded_rows(len(z), 1, block), device=z.device)
    return torch.where(order < len(z), order, -1)
