"""The check of values of an objective as one launch, where some twenty small operators would do."""

import triton
import triton.language as tl


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit(do_not_specialize=["m", "sample_stride", "domain_stride", "K", "num_domains"])
def check_values_kernel(
    temperature,
    offset,
    weight,
    domain_mask,
    sample_ids,
    domain_ids,
    valid,
    m,
    sample_stride,
    domain_stride,
    K,
    num_domains,
    BLOCK: tl.constexpr,
):
    """valid[program]: BLOCK entries of the tables are what ``_checks.check_values`` wants, and BLOCK of the (m,) domain ids.

    Those of padding rows do not matter.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < K * K
    tau = tl.load(temperature + at, mask=there, other=1.0)
    good = (tau > 0) & _finite(tau)
    good = good & _finite(tl.load(offset + at, mask=there, other=0.0))
    good = good & _finite(tl.load(weight + at, mask=there, other=0.0))
    if domain_mask is not None:
        mirrored = tl.load(domain_mask + at % K * K + at // K, mask=there, other=0)
        good = good & (tl.load(domain_mask + at, mask=there, other=0) == mirrored)
    if domain_ids is not None:
        padding = tl.load(sample_ids + at.to(tl.int64) * sample_stride, mask=at < m, other=-1) < 0
        ids = tl.load(domain_ids + at.to(tl.int64) * domain_stride, mask=at < m, other=0)
        good = good & (padding | ((ids >= 0) & (ids < num_domains)))
    tl.store(valid + tl.program_id(0), tl.min(good.to(tl.int32), 0) > 0)
