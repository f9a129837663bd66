"""Rows of the user to unit rows in slot order, and the gradient back through the normalisation.

A program has whole rows.
"""

import triton
import triton.language as tl

_MIN_NORM = tl.constexpr(1e-12)  # as torch.nn.functional.normalize


@triton.jit(do_not_specialize=["slots"])
def gather_rows_kernel(
    z,
    order,
    rows,
    inv_norm,
    slots,
    row_stride,
    d,
    D: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """rows[slot] = z[order[slot]] / norm, padded from d to D columns and zero in empty slots; inv_norm[slot]."""
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_D)
    source = tl.load(order + slot, mask=slot < slots, other=-1)
    filled = source >= 0
    at = z + source[:, None] * row_stride + column[None, :]
    x = tl.load(at, mask=filled[:, None] & (column < d)[None, :], other=0.0).to(tl.float32)
    if NORMALIZE:
        norm = tl.sqrt(tl.sum(x * x, 1))
        inverse = 1.0 / tl.where(norm < _MIN_NORM, _MIN_NORM, norm)  # a NaN stays
    else:
        inverse = tl.full((ROWS,), 1.0, tl.float32)
    tl.store(inv_norm + slot, tl.where(filled, inverse, 0.0), mask=slot < slots)
    out = rows + slot.to(tl.int64)[:, None] * D + column[None, :]
    unit = (x * inverse[:, None]).to(rows.dtype.element_ty)
    tl.store(out, unit, mask=(slot < slots)[:, None] & (column < D)[None, :])


@triton.jit(do_not_specialize=["m"])
def scatter_rows_kernel(
    grad_rows,
    z,
    slot,
    inv_norm,
    factor,
    grad,
    m,
    row_stride,
    d,
    D: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad[row] = factor / norm (g - u (u·g)) with g = grad_rows[slot[row]], u the unit row; 0 without a slot."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    at_slot = tl.load(slot + row, mask=row < m, other=-1)
    filled = at_slot >= 0
    inverse = tl.load(inv_norm + at_slot, mask=filled, other=0.0)
    there = filled[:, None] & (column < d)[None, :]
    g = tl.load(grad_rows + at_slot[:, None] * D + column[None, :], mask=there, other=0.0)
    if NORMALIZE:
        x = tl.load(z + row[:, None] * row_stride + column[None, :], mask=there, other=0.0)
        unit = x.to(tl.float32) * inverse[:, None]
        # Below the smallest norm the division is by a constant: nothing to project.
        along = tl.where(inverse >= 1.0 / _MIN_NORM, 0.0, tl.sum(g * unit, 1))
        g -= unit * along[:, None]
    g *= (tl.load(factor) * inverse)[:, None]
    out = grad + row[:, None] * d + column[None, :]
    tl.store(out, g.to(grad.dtype.element_ty), mask=(row < m)[:, None] & (column < d)[None, :])
