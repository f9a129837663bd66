"""Forward: tiles of similarities reduced, on chip, to sums over the negatives of their rows and columns.

A part of a sum is a pair of an exponent, the top, and Σ 2^(x - top): the logarithm is taken once, when all parts are joined.
"""

import triton
import triton.language as tl

from .tiles import (
    LN2,
    LOG2E,
    add,
    domain_pair,
    dot_tile,
    halves,
    holds_only_negatives,
    log1p_of_fraction,
    negatives,
    pivot_of,
    tile_of_program,
)

# One exponential serves a row and a column where both can be taken relative to a top that the tile has in common. Unit rows
# have |x| <= scale beside the offset, and 2^(x - top) with top = scale - RANGE stays below 2^RANGE. A sum that comes out
# outside these bounds may have lost terms, or overflowed, and is taken again relative to its own largest term.
RANGE = tl.constexpr(100.0)
SMALLEST, LARGEST = tl.constexpr(1e-18), tl.constexpr(1e36)


@triton.jit
def _softplus(x):
    """softplus(x ln 2), to the last digits in both tails."""
    return tl.maximum(x, 0.0) * LN2 + log1p_of_fraction(tl.exp2(-tl.abs(x)))


@triton.jit
def _store(at, sums, top, total):
    tl.store(at, top)
    tl.store(at + sums, total)


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
    SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ONE_EXPONENTIAL: tl.constexpr,
):
    """by_row[:, jt, slots of it] and by_col[:, it, slots of jt] = Σ 2^(s log2 e) over the negatives in tile (it, jt).

    [0] are the tops and [1] the sums; SIGMOID: [0] are the largest s log2 e and [1] Σ softplus(s). On the diagonal by_col is
    by_row: a slot gets parts from tiles right of the diagonal as a row, from those above as a column.
    """
    it, jt = tile_of_program(row_tiles, col_tiles, DIAGONAL)
    if jt >= col_tiles:
        return
    row_tile = first_row_tile + it
    col_tile = first_col_tile + jt
    lane = tl.arange(0, BLOCK)
    half = tl.arange(0, BLOCK // 2)
    row_out = by_row + (jt.to(tl.int64) * row_tiles + it) * BLOCK
    col_out = by_col + (it.to(tl.int64) * col_tiles + jt) * BLOCK
    sums = row_tiles.to(tl.int64) * col_tiles * BLOCK  # from a top to its sum

    a, b, live = domain_pair(tiles, row_tile, col_tile, domain_mask, K)
    if not live:
        top = tl.full((BLOCK,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        _store(row_out + lane, sums, top, total)
        _store(col_out + lane, sums, top, total)
        return

    i = row_tile.to(tl.int64) * BLOCK
    j = col_tile.to(tl.int64) * BLOCK
    dots = dot_tile(rows, rows, i, j, D, BLOCK, BLOCK_D, PRECISION, DESCRIPTORS)
    scale = LOG2E / tl.load(temperature + a * K + b)
    shift = tl.load(offset + a * K + b) * scale
    only_negatives = holds_only_negatives(tiles, row_tile, col_tile, BLOCK)
    left, right = halves(dots)
    has_columns = not (DIAGONAL and it == jt)

    done = False
    ONE: tl.constexpr = ONE_EXPONENTIAL and not SIGMOID
    if ONE and only_negatives:
        pivot = tl.maximum(scale - RANGE, 0.0)
        row_total = tl.zeros((BLOCK,), tl.float32)
        smallest = LARGEST
        for side in tl.static_range(2):
            e = tl.exp2((right if side else left) * scale - pivot)
            row_total += tl.sum(e, 1)
            col_total = tl.sum(e, 0)
            smallest = tl.minimum(smallest, tl.min(col_total, 0))
            if has_columns:
                _store(col_out + side * (BLOCK // 2) + half, sums, half * 0.0 + (pivot - shift), col_total)
        _store(row_out + lane, sums, lane * 0.0 + (pivot - shift), row_total)
        done = (tl.minimum(smallest, tl.min(row_total, 0)) > SMALLEST) & (tl.max(row_total, 0) < LARGEST)
    if not done:
        if ONE:
            tl.debug_barrier()  # what was stored above comes first
        row_ids = tl.load(ids + i + lane)
        row_top = tl.full((BLOCK,), -float("inf"), tl.float32)
        row_total = tl.zeros((BLOCK,), tl.float32)
        for side in tl.static_range(2):
            col = side * (BLOCK // 2) + half
            x = (right if side else left) * scale - shift
            if not only_negatives:
                x = tl.where(negatives(row_ids, tl.load(ids + j + col)), x, -float("inf"))
            if SIGMOID:
                row_top = tl.maximum(row_top, tl.max(x, 1))
                row_total += tl.sum(_softplus(x), 1)
            else:
                row_top, row_total = add(row_top, row_total, x, 1.0, 1)
            if has_columns:
                col_top = tl.max(x, 0)
                if SIGMOID:
                    col_total = tl.sum(_softplus(x), 0)
                else:
                    col_total = tl.sum(tl.exp2(x - pivot_of(col_top)[None, :]), 0)
                _store(col_out + col, sums, col_top, col_total)
        _store(row_out + lane, sums, row_top, row_total)


@triton.jit(do_not_specialize=["slots", "count"])
def merge_kernel(total, top, parts, slots, count, SIGMOID: tl.constexpr, SLOTS: tl.constexpr, PARTS: tl.constexpr):
    """Join the running natural lse of each slot, total, with parts[:, :, slot], count of them.

    SIGMOID: the running sum, total, and the largest s, top.
    """
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    if SIGMOID:
        highest = tl.load(top + slot) * LOG2E
        running = tl.load(total + slot)
    else:
        highest = tl.load(total + slot) * LOG2E
        running = tl.full((SLOTS,), 1.0, tl.float32)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        there = (part < count)[:, None]
        at = parts + part.to(tl.int64)[:, None] * slots + slot[None, :]
        tops = tl.load(at, mask=there, other=-float("inf"))
        totals = tl.load(at + count.to(tl.int64) * slots, mask=there, other=0.0)
        if SIGMOID:
            highest = tl.maximum(highest, tl.max(tops, 0))
            running += tl.sum(totals, 0)
        else:
            highest, running = add(highest, running, tops, totals, 0)
    if SIGMOID:
        tl.store(top + slot, highest * LN2)
    else:
        running = (pivot_of(highest) + tl.log2(running)) * LN2
    tl.store(total + slot, running)
