"""Positives: the tiles that may hold some, as the spans of the layout tell, apart from the tiles of negatives.

Tiles of columns are dealt out to CHUNKS programs for each tile of rows: few classes fill whole rows of tiles with positives.
"""

import triton
import triton.language as tl

from .layout import search
from .tiles import LN2, LOG2E, NOTHING, dot_tile, eighths, mirror, positives

CHUNKS = 8


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, to the last digits of small x too: 2 atanh(x / (2 + x)) as a series."""
    y = x / (2.0 + x)
    q = y * y
    p = 1.0 / 13
    p = p * q + 1.0 / 11
    p = p * q + 1.0 / 9
    p = p * q + 1.0 / 7
    p = p * q + 1.0 / 5
    p = p * q + 1.0 / 3
    return tl.where(x < 1, 2.0 * y * (p * q + 1.0), tl.log(1.0 + x))


@triton.jit(do_not_specialize=["steps", "K"])
def positives_forward_kernel(
    rows,
    ids,
    tiles,
    spans,
    temperature,
    offset,
    weight,
    lse,
    parts,
    count,
    steps,
    K,
    D: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """parts[0 and 1, chunk, slot] = Σ w softplus(lse - s) and Σ w σ(lse - s); count[slot], how many positives there are.

    2^steps is more than there are slots.
    """
    row_tile = tl.program_id(0) // CHUNKS
    chunk = tl.program_id(0) % CHUNKS
    lane = tl.arange(0, BLOCK)
    eighth = tl.arange(0, BLOCK // 8)
    i = row_tile.to(tl.int64) * BLOCK
    spans += row_tile.to(tl.int64) * K * 2
    a = tl.load(tiles + row_tile * 4)
    loss = tl.zeros((BLOCK,), tl.float32)
    slope = tl.zeros((BLOCK,), tl.float32)
    for e in range(K):
        start = tl.load(spans + e * 2)
        end = tl.load(spans + e * 2 + 1)
        for col_tile in tl.range(start + (chunk + e) % CHUNKS, end, CHUNKS, disable_licm=True):
            apart = (col_tile - row_tile) * BLOCK
            j = i + apart
            dots = eighths(dot_tile(rows, rows, i, j, D, BLOCK, BLOCK_D, PRECISION, DESCRIPTORS))
            scale = LOG2E / tl.load(temperature + a * K + e)
            shift = tl.load(offset + a * K + e) * scale
            w = tl.load(weight + a * K + e)
            row_ids = tl.load(ids + i + lane)
            nu = tl.load(lse + i + lane) * LOG2E + shift
            above = tl.zeros((BLOCK, BLOCK // 8), tl.float32)  # Σ max(x, 0)
            product = tl.zeros((BLOCK, BLOCK // 8), tl.float32)  # Π (1 + 2^-|x|) - 1: one logarithm of several
            sigmoids = tl.zeros((BLOCK, BLOCK // 8), tl.float32)
            for n in tl.static_range(8):
                first = n * (BLOCK // 8)
                wanted = positives(lane - (apart + first), row_ids, eighth, tl.load(ids + j + first + eighth))
                x = tl.where(wanted, nu[:, None] - dots[n] * scale, NOTHING)
                small = tl.exp2(-tl.abs(x))
                above += tl.maximum(x, 0.0)
                product += small + product * small
                sigmoids += tl.where(x > 0, 1.0, small) / (1.0 + small)
            loss += w * tl.sum(above * LN2 + _log1p(product), 1)
            slope += w * tl.sum(sigmoids, 1)
    slots = tl.num_programs(0) // CHUNKS * BLOCK
    out = parts + chunk.to(tl.int64) * slots + i + lane
    tl.store(out, loss)
    tl.store(out + slots.to(tl.int64) * CHUNKS, slope)

    if chunk == 0:
        # Unsigned, the -1 of empty slots stands behind all sample numbers.
        numbers = ids.to(tl.pointer_type(tl.uint32))
        number = tl.load(numbers + i + lane)
        found = tl.zeros((BLOCK,), tl.int32)
        for e in range(K):
            low = tl.zeros((BLOCK,), tl.int32) + tl.load(spans + e * 2) * BLOCK
            high = tl.zeros((BLOCK,), tl.int32) + tl.load(spans + e * 2 + 1) * BLOCK
            begin = search(numbers, low, high, number, steps, False)
            stop = search(numbers, low, high, number, steps, True)
            itself = (stop > begin) & (e == a)
            found += stop - begin - itself.to(tl.int32)
        tl.store(count + i + lane, tl.where(tl.load(ids + i + lane) >= 0, found, 0))


@triton.jit
def _sigmoid(x):
    """σ(x ln 2), to the last digits in both tails."""
    return 1.0 / (1.0 + tl.exp2(-x))


@triton.jit(do_not_specialize=["first_row_tile", "first_col_tile", "row_tiles", "col_tiles", "K"])
def positives_grad_kernel(
    rows,
    ids,
    tiles,
    spans,
    temperature,
    offset,
    weight,
    lse,
    share,
    h,
    parts,
    first_row_tile,
    first_col_tile,
    row_tiles,
    col_tiles,
    K,
    D: tl.constexpr,
    DIAGONAL: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Store H / τ where positives are into h, which holds that of the negatives; on the diagonal into both triangles of it.

    parts[0 and 1, it, jt] = Σ H and Σ H s over the unordered pairs of tile (it, jt).
    """
    it = tl.program_id(0) // CHUNKS
    start = tl.program_id(0) % CHUNKS
    if DIAGONAL:
        start += it
    row_tile = first_row_tile + it
    lane = tl.arange(0, BLOCK)
    eighth = tl.arange(0, BLOCK // 8)
    i = row_tile.to(tl.int64) * BLOCK
    stride = col_tiles.to(tl.int64) * BLOCK
    a = tl.load(tiles + row_tile * 4)
    for jt in tl.range(start, col_tiles, CHUNKS, disable_licm=True):
        col_tile = first_col_tile + jt
        b = tl.load(tiles + col_tile * 4)
        span = spans + (row_tile.to(tl.int64) * K + b) * 2
        first_tile = tl.load(span, mask=b >= 0, other=0)
        end = tl.load(span + 1, mask=b >= 0, other=0)
        sum_h = 0.0
        sum_hx = 0.0
        if (first_tile <= col_tile) & (col_tile < end):
            apart = (col_tile - row_tile) * BLOCK
            j = i + apart
            dots = eighths(dot_tile(rows, rows, i, j, D, BLOCK, BLOCK_D, PRECISION, DESCRIPTORS))
            tau = tl.load(temperature + a * K + b)
            scale = LOG2E / tau
            shift = tl.load(offset + a * K + b) * scale
            row_ids = tl.load(ids + i + lane)
            row_lse = tl.load(lse + i + lane) * LOG2E
            forth = tl.load(share + i + lane) * -tl.load(weight + a * K + b)
            back_weight = -tl.load(weight + b * K + a)
            here = h + it * (stride * BLOCK) + jt * BLOCK
            for n in tl.static_range(8):
                first = n * (BLOCK // 8)
                col = j + first + eighth
                wanted = positives(lane - (apart + first), row_ids, eighth, tl.load(ids + col))
                x = tl.where(wanted, dots[n] * scale - shift, -NOTHING)
                grad = _sigmoid(row_lse[:, None] - x) * forth[:, None]
                grad += (
                    _sigmoid((tl.load(lse + col) * LOG2E)[None, :] - x) * (tl.load(share + col) * back_weight)[None, :]
                )
                out = here + (lane[:, None] * stride + (first + eighth)[None, :])
                tl.store(out, (grad * (1.0 / tau)).to(h.dtype.element_ty), wanted)
                sum_h += tl.sum(grad)
                sum_hx += tl.sum(grad * x)
            if DIAGONAL:
                if it == jt:  # such a tile holds every pair twice
                    sum_h *= 0.5
                    sum_hx *= 0.5
                else:
                    mirror(here, h + jt * (stride * BLOCK) + it * BLOCK, stride, BLOCK)
        part = parts + it.to(tl.int64) * col_tiles + jt
        tl.store(part, sum_h)
        tl.store(part + row_tiles.to(tl.int64) * col_tiles, sum_hx * LN2)
