"""Random inputs: sizes, ids with padding, masks and temperatures from 0.005 to 10, against the reference in float64."""

import math
import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import Case, every_other, transposed, unaligned
from tests.evaluate import assert_matches, evaluate

EXAMPLES = int(os.environ.get("UNICLIP_EXAMPLES", "300"))


@st.composite
def cases(draw) -> Case:
    m, d, k = draw(st.integers(0, 200)), draw(st.integers(1, 300)), draw(st.integers(1, 5))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    samples = draw(st.integers(1, max(m, 1)))
    lowest = draw(st.sampled_from([0, 0, -1, -5]))
    tau = draw(st.floats(0.005, 10.0))
    spread = draw(st.sampled_from([1.0, 2.0]))
    mask = torch.rand(k, k, generator=rng) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    normalize = draw(st.booleans())
    # Decades of the rows' sizes. Rows taken as they are stay near length 1: beyond, float32 has no digit of e^s right.
    low, high = draw(st.sampled_from([(-4, -4), (0, 0), (4, 4), (-4, 4)])) if normalize else (-0.5 * math.log10(d),) * 2
    return Case(
        "random",
        torch.randn(m, d, generator=rng) * 10 ** (low + (high - low) * torch.rand(m, 1, generator=rng)),
        torch.randint(lowest, samples, (m,), generator=rng),
        torch.randint(k, (m,), generator=rng),
        {
            "temperature": tau * spread ** torch.rand(k, k, generator=rng),
            "offset": torch.randn(k, k, generator=rng) * 0.2,
            "weight": torch.rand(k, k, generator=rng),
            "domain_mask": mask | mask.T,
            "reduction": reduction,
            "normalize": normalize,
        },
        upstream=torch.randn(m, generator=rng) if reduction == "none" else 1.0,
        layout=draw(st.sampled_from([lambda z: z, transposed, every_other, unaligned])),
    )


@given(cases(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="UNICLIP_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_cpu_on_random_inputs(case, dtype):
    assert_matches(evaluate(case, "cpu", dtype), case, dtype)
