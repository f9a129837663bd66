"""The layout of ``sort_rows`` in two kernels around two sorts: on a GPU a step of a small batch is the launches it takes."""

import triton
import triton.language as tl


@triton.jit
def search(values, low, high, wanted, steps, UPPER: tl.constexpr):
    """First index in [low, high) whose value is not below ``wanted`` (UPPER: is above it), or high; the values ascend.

    2^steps > high - low.
    """
    for _ in range(steps):
        middle = (low + high) // 2
        value = tl.load(values + middle, mask=low < high, other=0)
        before = (low < high) & ((value <= wanted) if UPPER else (value < wanted))
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit(do_not_specialize=["m", "steps", "stride", "K"])
def number_samples_kernel(
    by_sample,
    row,
    domain_ids,
    domain,
    first,
    end,
    m,
    steps,
    stride,
    K,
    BLOCK: tl.constexpr,
):
    """Of ids in ascending order and the rows they come from: domain[t], K for padding, and where t's sample begins and ends."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = t < m
    sample = tl.load(by_sample + t, mask=there, other=-1)
    zero = tl.zeros((BLOCK,), tl.int32)
    tl.store(first + t, search(by_sample, zero, zero + m, sample, steps, False), mask=there)
    tl.store(end + t, search(by_sample, zero, zero + m, sample, steps, True), mask=there)
    a = zero
    if domain_ids is not None:
        given = tl.load(domain_ids + tl.load(row + t, mask=there, other=0) * stride, mask=there, other=0)
        a = tl.minimum(tl.maximum(given.to(tl.int32), 0), K - 1)
    tl.store(domain + t, tl.where(sample < 0, K, a).to(domain.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["m", "steps", "K"])
def layout_kernel(
    domain,
    position,
    row,
    first,
    end,
    starts,
    domain_mask,
    order,
    slot,
    ids,
    tiles,
    spans,
    m,
    steps,
    K,
    BLOCK: tl.constexpr,
    DOMAINS: tl.constexpr,
):
    """One tile of the layout a program.

    ``domain`` (M,) ascends, with ``position`` the place of each in the order of samples, in which ``row``, ``first`` and ``end``
    are. DOMAINS is at least K.
    """
    tile = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    here = tile * BLOCK + lane
    every = tl.arange(0, DOMAINS)
    none = tl.zeros((DOMAINS,), tl.int32)
    bound = search(domain, none, none + m, every, steps, False)
    filled = search(domain, none, none + m, every, steps, True) - bound
    filled = tl.where(every < K, filled, 0)
    slots = (filled + BLOCK - 1) // BLOCK * BLOCK
    if starts is None:
        start = tl.cumsum(slots, 0) - slots
    else:
        start = tl.load(starts + every, mask=every < K, other=0)
    mine = (start <= tile * BLOCK) & (tile * BLOCK < start + slots)
    a = tl.max(tl.where(mine, every, -1), 0)
    place = tile * BLOCK - tl.sum(tl.where(mine, start, 0), 0)  # in the domain
    held = tl.minimum(tl.maximum(tl.sum(tl.where(mine, filled, 0), 0) - place, 0), BLOCK)
    sorted_row = tl.sum(tl.where(mine, bound, 0), 0) + place + lane
    there = lane < held

    t = tl.load(position + sorted_row, mask=there, other=0)
    source = tl.load(row + t, mask=there, other=-1)
    sample = tl.load(first + t, mask=there, other=-1)
    tl.store(order + here, source)
    tl.store(ids + here, sample)
    tl.store(slot + source, here.to(tl.int64), mask=there)
    padding = tl.sum(filled, 0) + here  # behind all domains, and no more of them than slots
    lost = tl.load(row + tl.load(position + padding, mask=padding < m, other=0), mask=padding < m, other=0)
    tl.store(slot + lost, tl.full((BLOCK,), -1, tl.int64), mask=padding < m)

    lowest = tl.min(tl.where(there, sample, 2147483647), 0)
    about = tiles + tile * 4
    tl.store(about, a)
    tl.store(about + 1, held)
    tl.store(about + 2, lowest)
    tl.store(about + 3, tl.max(sample, 0))

    # Places of samples count rows, so that the last sample ends where its rows do.
    after = tl.max(tl.load(end + t, mask=there, other=-1), 0)
    begin = search(position, bound, bound + filled, lowest, steps, False)
    stop = search(position, bound, bound + filled, after, steps, False)
    wanted = begin < stop
    if domain_mask is not None:
        wanted = wanted & (tl.load(domain_mask + a * K + every, mask=(a >= 0) & (every < K), other=0) != 0)
    gap = start - bound
    span = spans + (tile.to(tl.int64) * K + every) * 2
    tl.store(span, tl.where(wanted, (begin + gap) // BLOCK, 0).to(tl.int32), mask=every < K)
    tl.store(span + 1, tl.where(wanted, (stop + gap + BLOCK - 1) // BLOCK, 0).to(tl.int32), mask=every < K)
