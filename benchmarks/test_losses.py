"""Small timed cases for ``pytest benchmarks`` (pytest-benchmark), each checked against float64 before it is timed."""

from __future__ import annotations

import pytest

from .measure import check_on_few
from .problems import make_batch
from .providers import PROVIDERS

D = 512
CASES = [
    pytest.param(provider, objective, dtype, id=f"{objective}-{provider.name}-{str(dtype).removeprefix('torch.')}")
    for provider in PROVIDERS
    for objective in provider.objectives
    for dtype in provider.dtypes("cpu")
]


@pytest.mark.parametrize("n", [256, 1024])
@pytest.mark.parametrize(("provider", "objective", "dtype"), CASES)
def test_forward_and_backward(benchmark, provider, objective, dtype, n):
    check_on_few(provider, objective, n, D, dtype, "cpu")
    benchmark.group = f"{objective} N={n} D={D}"
    benchmark(provider.prepare(make_batch(objective, n, D, dtype)))
