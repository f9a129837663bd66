"""Positives: the tiles that may hold some, as the spans of the layout tell, apart from the tiles of negatives.

Tiles of columns are dealt out to CHUNKS programs for each tile of rows: few classes fill whole rows of tiles with positives.
"""

import triton
import triton.language as tl

from .layout import search
from .tiles import LN2, LOG2E, NOTHING, add, dot_tile, eighths, log1p_of_fraction, mirror, positives, sigmoid

CHUNKS = 8


@triton.jit
def _sigmoids(dots, scale, shift, apart, row_ids, col_ids, BLOCK: tl.constexpr):
    """Σ softplus(base - s) and Σ σ(base - s) over the positives of each row of a tile; (BLOCK,) ``shift`` has the base in it."""
    lane = tl.arange(0, BLOCK)
    eighth = tl.arange(0, BLOCK // 8)
    above = tl.zeros((BLOCK, BLOCK // 8), tl.float32)  # Σ max(x, 0)
    product = tl.zeros((BLOCK, BLOCK // 8), tl.float32)  # Π (1 + 2^-|x|) - 1: one logarithm of several
    sigmoids = tl.zeros((BLOCK, BLOCK // 8), tl.float32)
    for n in tl.static_range(8):
        first = n * (BLOCK // 8)
        wanted = positives(lane - (apart + first), row_ids, eighth, tl.load(col_ids + first + eighth))
        x = tl.where(wanted, shift[:, None] - dots[n] * scale, NOTHING)
        small = tl.exp2(-tl.abs(x))
        above += tl.maximum(x, 0.0)
        product += small + product * small
        sigmoids += tl.where(x > 0, 1.0, small) / (1.0 + small)
    logs = tl.where(product < 1, log1p_of_fraction(product), tl.log(1.0 + product))
    return tl.sum(above * LN2 + logs, 1), tl.sum(sigmoids, 1)


@triton.jit
def _exponentials(dots, scale, shift, top, total, apart, row_ids, col_ids, BLOCK: tl.constexpr):
    """Σ 2^x over the positives of each row of a tile joined to a (top, total), and Σ x, where x = s log2 e."""
    lane = tl.arange(0, BLOCK)
    eighth = tl.arange(0, BLOCK // 8)
    sum_x = tl.zeros((BLOCK, BLOCK // 8), tl.float32)
    for n in tl.static_range(8):
        first = n * (BLOCK // 8)
        wanted = positives(lane - (apart + first), row_ids, eighth, tl.load(col_ids + first + eighth))
        x = dots[n] * scale - shift
        sum_x += tl.where(wanted, x, 0.0)
        top, total = add(top, total, tl.where(wanted, x, -float("inf")), 1.0, 1)
    return top, total, tl.sum(sum_x, 1)


@triton.jit(do_not_specialize=["steps", "K"])
def positives_forward_kernel(
    rows,
    ids,
    tiles,
    spans,
    temperature,
    offset,
    weight,
    base,
    parts,
    weights,
    count,
    steps,
    K,
    D: tl.constexpr,
    SOFTMAX: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """parts[0 and 1, chunk, slot] = Σ w σ(base - s) and Σ w softplus(base - s); count[slot], how many positives there are.

    SOFTMAX: parts[0] = Σ w s and parts[1 and 2] = Σ 2^(s log2 e), as a top and a sum; weights[slot] = Σ w. 2^steps is more
    than there are slots.
    """
    row_tile = tl.program_id(0) // CHUNKS
    chunk = tl.program_id(0) % CHUNKS
    lane = tl.arange(0, BLOCK)
    i = row_tile.to(tl.int64) * BLOCK
    spans += row_tile.to(tl.int64) * K * 2
    a = tl.load(tiles + row_tile * 4)
    weighted = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
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
            if SOFTMAX:
                top, total, sum_x = _exponentials(dots, scale, shift, top, total, apart, row_ids, ids + j, BLOCK)
                weighted += w * LN2 * sum_x
            else:
                shift += tl.load(base + i + lane) * LOG2E
                loss, slope = _sigmoids(dots, scale, shift, apart, row_ids, ids + j, BLOCK)
                weighted += w * slope
                total += w * loss
    part = tl.num_programs(0).to(tl.int64) * BLOCK
    out = parts + chunk.to(tl.int64) * (part // CHUNKS) + i + lane
    tl.store(out, weighted)
    if SOFTMAX:
        tl.store(out + part, top)
        tl.store(out + 2 * part, total)
    else:
        tl.store(out + part, total)

    if chunk == 0:
        # Unsigned, the -1 of empty slots stands behind all sample numbers.
        numbers = ids.to(tl.pointer_type(tl.uint32))
        number = tl.load(numbers + i + lane)
        filled = tl.load(ids + i + lane) >= 0
        found = tl.zeros((BLOCK,), tl.int32)
        sum_w = tl.zeros((BLOCK,), tl.float32)
        for e in range(K):
            start = tl.load(spans + e * 2) * BLOCK
            end = tl.load(spans + e * 2 + 1) * BLOCK
            if start < end:
                low = tl.zeros((BLOCK,), tl.int32) + start
                high = tl.zeros((BLOCK,), tl.int32) + end
                begin = search(numbers, low, high, number, steps, False)
                stop = search(numbers, low, high, number, steps, True)
                itself = (stop > begin) & (e == a)
                here = tl.where(filled, stop - begin - itself.to(tl.int32), 0)
                found += here
                if SOFTMAX:
                    sum_w += here.to(tl.float32) * tl.load(weight + a * K + e)
        tl.store(count + i + lane, found)
        if SOFTMAX:
            tl.store(weights + i + lane, sum_w)


@triton.jit
def _reachable(base):
    """Infinite for the -inf of a row without positives, so that 2^(x - base) is 0 whatever x is."""
    return tl.where(base == -float("inf"), float("inf"), base)


@triton.jit(do_not_specialize=["first_row_tile", "first_col_tile", "row_tiles", "col_tiles", "K"])
def positives_grad_kernel(
    rows,
    ids,
    tiles,
    spans,
    temperature,
    offset,
    weight,
    base,
    slope,
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
    SOFTMAX: tl.constexpr,
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
            row_base = tl.load(base + i + lane) * LOG2E
            forth = tl.load(share + i + lane) * -tl.load(weight + a * K + b)
            back_weight = -tl.load(weight + b * K + a)
            here = h + it * (stride * BLOCK) + jt * BLOCK
            for n in tl.static_range(8):
                first = n * (BLOCK // 8)
                col = j + first + eighth
                wanted = positives(lane - (apart + first), row_ids, eighth, tl.load(ids + col))
                x = dots[n] * scale - shift
                if SOFTMAX:
                    x = tl.where(wanted, x, NOTHING)
                    grad = tl.exp2(x - _reachable(row_base)[:, None]) * tl.load(slope + i + lane)[:, None]
                    col_base = _reachable(tl.load(base + col) * LOG2E)
                    grad += tl.exp2(x - col_base[None, :]) * tl.load(slope + col)[None, :]
                    back = tl.load(share + col) * back_weight
                    grad += tl.where(wanted, forth[:, None] + back[None, :], 0.0)
                else:
                    x = tl.where(wanted, x, -NOTHING)
                    grad = sigmoid(row_base[:, None] - x) * forth[:, None]
                    col_base = tl.load(base + col) * LOG2E
                    grad += sigmoid(col_base[None, :] - x) * (tl.load(share + col) * back_weight)[None, :]
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
