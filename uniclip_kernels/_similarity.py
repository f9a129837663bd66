"""The matrix of domain-dependent similarities and its gradient, in rectangles that fit a backend's workspace."""

from __future__ import annotations

import torch
from torch import Tensor

from ._backend import Backend
from ._layout import padded_rows
from ._scaling import gain_of, is_narrow, table_gradients


def forward(
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


def backward(
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
    if is_narrow(x_rows) and grad.numel():
        gain = gain_of(grad.abs().amax(), temperature)
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
    return *grads, *table_gradients(sums[..., 0], sums[..., 1], factor, temperature)


def _padded_order(z: Tensor, block: int) -> Tensor:
    """Input order, padded with empty slots to whole tiles."""
    m = z.shape[0]
    order = torch.arange(padded_rows(m, 1, block), device=z.device)
    return torch.where(order < m, order, -1)
