"""domain_similarity: the matrix of s of rows in any order, and what its gradient needs."""

import triton
import triton.language as tl

from .tiles import dot_tile, halves, tile_of_program


@triton.jit(do_not_specialize=["x_rows", "y_rows", "K"])
def similarity_matrix_kernel(
    x,
    y,
    x_domains,
    y_domains,
    temperature,
    offset,
    s,
    x_rows,
    y_rows,
    K,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """s (x_rows, y_rows) = (x · y - offset) / temperature, by the domains of row and column."""
    it, jt = tile_of_program(tl.cdiv(x_rows, BLOCK), tl.cdiv(y_rows, BLOCK), False)
    i = it.to(tl.int64) * BLOCK
    j = jt.to(tl.int64) * BLOCK
    left, right = halves(dot_tile(x, y, i, j, D, BLOCK, BLOCK_D, PRECISION, DESCRIPTORS))
    row = i + tl.arange(0, BLOCK)
    in_x = row < x_rows
    a = tl.load(x_domains + row, mask=in_x, other=0)
    for side in tl.static_range(2):
        col = j + side * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        in_y = col < y_rows
        pair = a[:, None] * K + tl.load(y_domains + col, mask=in_y, other=0)[None, :]
        values = ((right if side else left) - tl.load(offset + pair)) / tl.load(temperature + pair)
        out = s + (row[:, None] * y_rows + col[None, :])
        tl.store(out, values, mask=in_x[:, None] & in_y[None, :])


@triton.jit(do_not_specialize=["x_rows", "y_rows", "stride", "K"])
def similarity_matrix_grad_kernel(
    grad,
    s,
    x_domains,
    y_domains,
    temperature,
    g,
    parts,
    x_rows,
    y_rows,
    stride,
    K,
    BLOCK: tl.constexpr,
):
    """g = grad / temperature, zero beyond (x_rows, y_rows) up to whole tiles.

    parts[0 and 1, jt, row, b] = Σ grad and Σ grad s over the columns of domain b in tile column jt. ``stride`` is that
    of the rows of grad and of s.
    """
    jt = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    col = jt * BLOCK + tl.arange(0, BLOCK)
    there = (row < x_rows)[:, None] & (col < y_rows)[None, :]
    a = tl.load(x_domains + row, mask=row < x_rows, other=0)
    b = tl.load(y_domains + col, mask=col < y_rows, other=0)
    at = row[:, None] * stride + col[None, :]
    upstream = tl.load(grad + at, mask=there, other=0.0)
    weighted = upstream * tl.load(s + at, mask=there, other=0.0)
    out = upstream / tl.load(temperature + (a[:, None] * K + b[None, :]))
    padded_rows = tl.num_programs(0) * BLOCK
    width = tl.num_programs(1) * BLOCK
    tl.store(g + row[:, None] * width + col[None, :], out.to(g.dtype.element_ty))
    for e in range(K):
        mine = (b == e)[None, :]
        part = parts + (jt * padded_rows + row) * K + e
        tl.store(part, tl.sum(tl.where(mine, upstream, 0.0), 1))
        second_part = part + tl.num_programs(1).to(tl.int64) * padded_rows * K
        tl.store(second_part, tl.sum(tl.where(mine, weighted, 0.0), 1))
