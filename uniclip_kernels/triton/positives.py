"""The sparse side: each anchor against the few rows of its own sample, which lie in at most K runs of slots.

A program has ROWS anchors of one domain with whole rows, and takes their t-th positives in a domain together.
"""

import triton
import triton.language as tl


@triton.jit
def _log1p(x):
    """log(1 + x) for x in [0, 1], to the last digits of small x too: 2 atanh(x / (2 + x)) as a series."""
    y = x / (2.0 + x)
    q = y * y
    p = 1.0 / 15
    p = p * q + 1.0 / 13
    p = p * q + 1.0 / 11
    p = p * q + 1.0 / 9
    p = p * q + 1.0 / 7
    p = p * q + 1.0 / 5
    p = p * q + 1.0 / 3
    return 2.0 * y * (p * q + 1.0)


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def _run(runs, slot, e, K):
    """Slots [start, end) of the samples of these slots in domain e."""
    at = runs + (slot.to(tl.int64) * K + e) * 2
    return tl.load(at), tl.load(at + 1)


@triton.jit
def _load_rows(rows, slot, live, D: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    at = rows + slot.to(tl.int64)[:, None] * D + column[None, :]
    return tl.load(at, mask=live[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["K"])
def positives_forward_kernel(
    rows,
    tiles,
    runs,
    count,
    temperature,
    offset,
    weight,
    lse,
    loss,
    coefficient,
    K,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """loss = Σ_p w softplus(lse - s) / |P| and coefficient = Σ_p w σ(lse - s) / |P| of each slot."""
    first = tl.program_id(0) * ROWS
    slot = first + tl.arange(0, ROWS)
    a = tl.load(tiles + first // BLOCK * 4)
    total = tl.zeros((ROWS,), tl.float32)
    slope = tl.zeros((ROWS,), tl.float32)
    if a >= 0:
        x = _load_rows(rows, slot, slot >= 0, D, BLOCK_D)
        nu = tl.load(lse + slot)
        n = tl.maximum(tl.load(count + slot), 1).to(tl.float32)
        for e in range(K):
            tau = tl.load(temperature + a * K + e)
            b = tl.load(offset + a * K + e)
            w = tl.load(weight + a * K + e)
            start, end = _run(runs, slot, e, K)
            for t in range(tl.max(end - start, 0)):
                p = start + t
                live = (p < end) & (p != slot)
                y = _load_rows(rows, p, live, D, BLOCK_D)
                s = (tl.sum(x * y, 1) - b) / tau
                total += tl.where(live, w * _softplus(nu - s), 0.0)
                slope += tl.where(live, w * _sigmoid(nu - s), 0.0)
        total /= n
        slope /= n
    tl.store(loss + slot, total)
    tl.store(coefficient + slot, slope)


@triton.jit(do_not_specialize=["K"])
def positives_backward_kernel(
    rows,
    tiles,
    runs,
    count,
    temperature,
    offset,
    weight,
    lse,
    scale,
    grad_rows,
    parts,
    K,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add Σ_p H_ip ẑ_p / τ to grad_rows unless it is None.

    parts[0 and 1, program, e] = Σ H and Σ H s over the pairs i < p with p in domain e.
    """
    program = tl.program_id(0)
    first = program * ROWS
    slot = first + tl.arange(0, ROWS)
    a = tl.load(tiles + first // BLOCK * 4)
    part = parts + program * K
    second_part = part + tl.num_programs(0) * K
    if a < 0:
        for e in range(K):
            tl.store(part + e, 0.0)
            tl.store(second_part + e, 0.0)
        return
    x = _load_rows(rows, slot, slot >= 0, D, BLOCK_D)
    nu = tl.load(lse + slot)
    own = tl.load(scale + slot) / tl.maximum(tl.load(count + slot), 1).to(tl.float32)
    grad = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for e in range(K):
        tau = tl.load(temperature + a * K + e)
        b = tl.load(offset + a * K + e)
        forth_weight = tl.load(weight + a * K + e)
        back_weight = tl.load(weight + e * K + a)
        start, end = _run(runs, slot, e, K)
        sum_h = tl.zeros((ROWS,), tl.float32)
        sum_hs = tl.zeros((ROWS,), tl.float32)
        for t in range(tl.max(end - start, 0)):
            p = start + t
            live = (p < end) & (p != slot)
            y = _load_rows(rows, p, live, D, BLOCK_D)
            s = (tl.sum(x * y, 1) - b) / tau
            theirs = tl.load(scale + p, mask=live, other=0.0) / tl.load(count + p, mask=live, other=1).to(tl.float32)
            forth = forth_weight * _sigmoid(nu - s) * own
            back = back_weight * _sigmoid(tl.load(lse + p, mask=live, other=0.0) - s) * theirs
            h = tl.where(live, -(forth + back), 0.0)
            grad += (h / tau)[:, None] * y
            first_of_two = slot < p
            sum_h += tl.where(first_of_two, h, 0.0)
            sum_hs += tl.where(first_of_two, h * s, 0.0)
        tl.store(part + e, tl.sum(sum_h, 0))
        tl.store(second_part + e, tl.sum(sum_hs, 0))
    if grad_rows is not None:
        column = tl.arange(0, BLOCK_D)
        at = grad_rows + slot.to(tl.int64)[:, None] * D + column[None, :]
        there = (slot >= 0)[:, None] & (column < D)[None, :]
        tl.store(at, tl.load(at, mask=there, other=0.0) + grad, mask=there)
