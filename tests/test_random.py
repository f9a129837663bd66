"""Random inputs: sizes, ids with padding, masks and temperatures from 0.005 to 10, against the oracle in float64."""

import math
import os

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import Candidates, Case, as_they_are, every_other, transposed, unaligned
from tests.evaluate import assert_matches, evaluate, specification
from tests.objective_cases import OBJECTIVES

EXAMPLES = int(os.environ.get("UNICLIP_EXAMPLES", "120"))


@st.composite
def cases(draw) -> Case:
    objective = draw(st.sampled_from(OBJECTIVES))
    m, d, k = draw(st.integers(0, 200)), draw(st.integers(1, 300)), draw(st.integers(1, 5))
    q = draw(st.sampled_from([None, 0, m // 3, 2 * m + 1]))
    n = m + (q or 0)
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    samples = draw(st.integers(1, max(n, 1)))
    lowest = draw(st.sampled_from([0, 0, -1, -5]))
    tau = draw(st.floats(0.005, 10.0))
    spread = draw(st.sampled_from([1.0, 2.0]))
    mask = torch.rand(k, k, generator=rng) < draw(st.sampled_from([0.5, 0.8, 1.0]))
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    normalize = draw(st.booleans())
    # Decades of the rows' sizes. Rows taken as they are stay near length 1: beyond, float32 has no digit of e^s right.
    low, high = draw(st.sampled_from([(-4, -4), (0, 0), (4, 4), (-4, 4)])) if normalize else (-0.5 * math.log10(d),) * 2
    z = torch.randn(n, d, generator=rng) * 10 ** (low + (high - low) * torch.rand(n, 1, generator=rng))
    sample_ids, domain_ids = (torch.randint(*r, (n,), generator=rng) for r in ((lowest, samples), (0, k)))
    layouts = st.sampled_from([as_they_are, transposed, every_other, unaligned])
    options = {
        "temperature": tau * spread ** torch.rand(k, k, generator=rng),
        "offset": torch.randn(k, k, generator=rng) * 0.2,
        "domain_mask": mask | mask.T,
        "reduction": reduction,
        "normalize": normalize,
    }
    if objective != "mil_nce":
        options["weight"] = torch.rand(k, k, generator=rng)
    exclude_ids, groups = None, draw(st.sampled_from([0, 0, 1, 4, samples]))
    if groups:
        exclude_ids = torch.randint(-groups, groups, (samples,), generator=rng)[sample_ids % samples]
        options["exclude_ids"] = exclude_ids[:m]
    zeros = draw(st.sampled_from([None, 0.0, 0.5]))
    if zeros is not None:
        some = torch.rand(m, generator=rng) >= zeros
        options["anchor_weight"] = torch.rand(m, generator=rng) * some
    candidates = None
    if q is not None:
        ids = (None if of_all is None else of_all[m:] for of_all in (sample_ids, domain_ids, exclude_ids))
        candidates = Candidates(z[m:], *ids, draw(st.booleans()), draw(layouts))
    return Case(
        "random",
        z[:m],
        sample_ids[:m],
        domain_ids[:m],
        options,
        torch.randn(m, generator=rng) if reduction == "none" else 1.0,
        draw(layouts),
        objective,
        candidates,
    )


def _settings(examples: int) -> settings:
    random = "UNICLIP_EXAMPLES" in os.environ
    return settings(
        max_examples=examples, deadline=None, derandomize=not random, suppress_health_check=list(HealthCheck)
    )


@given(cases())
@_settings(EXAMPLES // 3)
def test_reference_on_random_inputs(case):
    assert_matches(specification(case, torch.float64), case, torch.float64)


@given(cases(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
@_settings(EXAMPLES)
def test_cpu_on_random_inputs(case, dtype):
    assert_matches(evaluate(case, "cpu", dtype), case, dtype)
