"""Backward: tiles of similarities, computed again, turned on chip into the gradient H / τ of their negatives."""

import triton
import triton.language as tl

from .tiles import (
    LN2,
    LOG2E,
    NOTHING,
    domain_pair,
    dot_tile,
    halves,
    holds_only_negatives,
    mirror,
    negatives,
    sigmoid,
    tile_of_program,
)

# One exponential serves both terms of H where the log-sum-exps of a tile lie within this many powers of two.
SPREAD = tl.constexpr(60.0)


@triton.jit
def _finite(lse):
    """0 for the -inf of a row without negatives, whose coefficient is 0: any number will do."""
    return tl.where(lse == -float("inf"), 0.0, lse)


@triton.jit(do_not_specialize=["first_row_tile", "first_col_tile", "row_tiles", "col_tiles", "K"])
def similarity_grad_kernel(
    rows,
    ids,
    tiles,
    temperature,
    offset,
    domain_mask,
    lse,
    coefficient,
    h,
    parts,
    first_row_tile,
    first_col_tile,
    row_tiles,
    col_tiles,
    K,
    D: tl.constexpr,
    DIAGONAL: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ONE_EXPONENTIAL: tl.constexpr,
):
    """h = H / τ of the rectangle, zero where no negative is; on the diagonal both triangles of it.

    parts[0 and 1, it, jt] = Σ H and Σ H s over the unordered pairs of tile (it, jt).
    """
    it, jt = tile_of_program(row_tiles, col_tiles, DIAGONAL)
    if jt >= col_tiles:
        return
    row_tile = first_row_tile + it
    col_tile = first_col_tile + jt
    lane = tl.arange(0, BLOCK)
    half = tl.arange(0, BLOCK // 2)
    stride = col_tiles.to(tl.int64) * BLOCK
    here = h + it * (stride * BLOCK) + jt * BLOCK
    mirrored = h + jt * (stride * BLOCK) + it * BLOCK
    part = parts + it.to(tl.int64) * col_tiles + jt
    second_part = part + row_tiles.to(tl.int64) * col_tiles

    a, b, live = domain_pair(tiles, row_tile, col_tile, domain_mask, K)
    if not live:
        nothing = tl.zeros((BLOCK, BLOCK), h.dtype.element_ty)
        inner = lane[:, None] * stride + lane[None, :]
        tl.store(here + inner, nothing)
        if DIAGONAL:
            tl.store(mirrored + inner, nothing)
        tl.store(part, 0.0)
        tl.store(second_part, 0.0)
        return

    i = row_tile.to(tl.int64) * BLOCK
    j = col_tile.to(tl.int64) * BLOCK
    dots = dot_tile(rows, rows, i, j, D, BLOCK, BLOCK_D, PRECISION, DESCRIPTORS)
    tau = tl.load(temperature + a * K + b)
    scale = LOG2E / tau
    shift = tl.load(offset + a * K + b) * scale
    row = i + lane
    only_negatives = holds_only_negatives(tiles, row_tile, col_tile, BLOCK)
    left, right = halves(dots)
    ONE: tl.constexpr = ONE_EXPONENTIAL and not SIGMOID and not DIAGONAL  # whose tiles need the registers to be turned
    if ONE:
        row_lse = tl.load(lse + row) * LOG2E
        in_cols = tl.load(lse + j + lane) * LOG2E
        top = tl.maximum(tl.max(row_lse, 0), tl.max(in_cols, 0))
        bottom = tl.minimum(tl.min(row_lse, 0), tl.min(in_cols, 0))
        one_exponential = only_negatives & (top - bottom < SPREAD)
    sum_h = 0.0
    sum_hx = 0.0
    if ONE and one_exponential:
        # 2^(x - lse_i) c_i + 2^(x - lse_j) c_j = 2^(x - top) (w_i + w_j) with w = 2^(top - lse) c
        inv_tau = 1.0 / tau
        row_weight = tl.exp2(top - row_lse) * (tl.load(coefficient + row) * inv_tau)
        for side in tl.static_range(2):
            col = j + side * (BLOCK // 2) + half
            x = (right if side else left) * scale - (shift + top)
            col_weight = tl.exp2(top - tl.load(lse + col) * LOG2E) * (tl.load(coefficient + col) * inv_tau)
            grad = tl.exp2(x) * (row_weight[:, None] + col_weight[None, :])
            out = grad.to(h.dtype.element_ty)
            tl.store(here + (lane[:, None] * stride + (side * (BLOCK // 2) + half)[None, :]), out)
            sum_h += tl.sum(grad)
            sum_hx += tl.sum(grad * x)
        sum_h *= tau
        sum_hx = sum_hx * tau + sum_h * top
    else:
        for side in tl.static_range(2):
            col = j + side * (BLOCK // 2) + half
            x = (right if side else left) * scale - shift
            if not only_negatives:
                x = tl.where(negatives(tl.load(ids + row), tl.load(ids + col)), x, NOTHING)
            if SIGMOID:
                grad = sigmoid(x) * (tl.load(coefficient + row)[:, None] + tl.load(coefficient + col)[None, :])
            else:
                row_lse = _finite(tl.load(lse + row)) * LOG2E
                col_lse = _finite(tl.load(lse + col)) * LOG2E
                grad = tl.exp2(x - row_lse[:, None]) * tl.load(coefficient + row)[:, None]
                grad += tl.exp2(x - col_lse[None, :]) * tl.load(coefficient + col)[None, :]
            sum_h += tl.sum(grad)
            sum_hx += tl.sum(grad * x)
            out = (grad * (1.0 / tau)).to(h.dtype.element_ty)
            tl.store(here + (lane[:, None] * stride + (side * (BLOCK // 2) + half)[None, :]), out)
    if DIAGONAL and it != jt:
        mirror(here, mirrored, stride, BLOCK)
    once = 1.0
    if DIAGONAL:
        once = tl.where(it == jt, 0.5, 1.0)  # a tile on the diagonal holds every pair twice
    tl.store(part, sum_h * once)
    tl.store(second_part, sum_hx * (once * LN2))
