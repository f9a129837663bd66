"""Forward: tiles of similarities reduced, on chip, to the log-sum-exp over negatives of their rows and columns."""

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, domain_pair, dot_tile, halves, holds_only_negatives, negatives, tile_of_program


@triton.jit
def log2_sum_exp2(x, axis: tl.constexpr):
    """log2 Σ 2^x along an axis; -inf where every x is."""
    top = tl.max(x, axis)
    pivot = tl.where(top == -float("inf"), 0.0, top)
    return pivot + tl.log2(tl.sum(tl.exp2(x - tl.expand_dims(pivot, axis)), axis))


@triton.jit
def log2_add_exp2(x, y):
    """log2 (2^x + 2^y), elementwise."""
    top = tl.maximum(x, y)
    pivot = tl.where(top == -float("inf"), 0.0, top)
    return pivot + tl.log2(tl.exp2(x - pivot) + tl.exp2(y - pivot))


@triton.jit(do_not_specialize=["first_row_tile", "first_col_tile", "row_tiles", "col_tiles", "K"])
def similarity_lse_kernel(
    rows,
    ids,
    tiles,
    temperature,
    offset,
    domain_mask,
    by_row,
    by_col,
    first_row_tile,
    first_col_tile,
    row_tiles,
    col_tiles,
    K,
    D: tl.constexpr,
    DIAGONAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """by_row[jt, slots of it] and by_col[it, slots of jt] = log2 Σ 2^(s log2 e) over the negatives in tile (it, jt).

    On the diagonal by_col is by_row: a slot gets parts from tiles right of the diagonal as a row, from those above as a
    column.
    """
    it, jt = tile_of_program(row_tiles, col_tiles, DIAGONAL)
    if jt >= col_tiles:
        return
    row_tile = first_row_tile + it
    col_tile = first_col_tile + jt
    lane = tl.arange(0, BLOCK)
    row_out = by_row + (jt.to(tl.int64) * row_tiles + it) * BLOCK
    col_out = by_col + (it.to(tl.int64) * col_tiles + jt) * BLOCK

    a, b, live = domain_pair(tiles, row_tile, col_tile, domain_mask, K)
    if not live:
        nothing = tl.full((BLOCK,), -float("inf"), tl.float32)
        tl.store(row_out + lane, nothing)
        tl.store(col_out + lane, nothing)
        return

    i = row_tile.to(tl.int64) * BLOCK
    j = col_tile.to(tl.int64) * BLOCK
    dots = dot_tile(rows + i * D, rows + j * D, D, BLOCK, BLOCK_D, PRECISION)
    scale = LOG2E / tl.load(temperature + a * K + b)
    shift = tl.load(offset + a * K + b) * scale
    only_negatives = holds_only_negatives(tiles, row_tile, col_tile, BLOCK)
    left, right = halves(dots, BLOCK)
    half = tl.arange(0, BLOCK // 2)
    of_rows = tl.full((BLOCK,), -float("inf"), tl.float32)
    for side in tl.static_range(2):
        x = (right if side else left) * scale - shift
        if not only_negatives:
            col = j + side * (BLOCK // 2) + half
            x = tl.where(negatives(tl.load(ids + i + lane), tl.load(ids + col)), x, -float("inf"))
        of_rows = log2_add_exp2(of_rows, log2_sum_exp2(x, 1))
        if not (DIAGONAL and it == jt):
            tl.store(col_out + side * (BLOCK // 2) + half, log2_sum_exp2(x, 0))
    tl.store(row_out + lane, of_rows)


@triton.jit(do_not_specialize=["slots", "count"])
def merge_lse_kernel(lse, parts, slots, count, SLOTS: tl.constexpr, PARTS: tl.constexpr):
    """Join the running natural lse of each slot with parts[:, slot], count of them in base 2."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    total = tl.load(lse + slot) * LOG2E
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        at = parts + part.to(tl.int64)[:, None] * slots + slot[None, :]
        more = log2_sum_exp2(tl.load(at, mask=(part < count)[:, None], other=-float("inf")), 0)
        total = log2_add_exp2(total, more)
    tl.store(lse + slot, total * LN2)
