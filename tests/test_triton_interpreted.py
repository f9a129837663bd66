"""The Triton kernels under Triton's interpreter, through the whole engine, over the whole shared grid of cases."""

import pytest
import torch

from tests.cases import BY_NAME, CASES
from tests.emulation import interpreter as interpreting
from tests.evaluate import assert_matches

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def interpreter():
    with interpreting.process() as run:
        yield run


def _evaluate(name: str, dtype: torch.dtype, arch: str = "80"):
    from tests.emulation.installed import installed
    from tests.emulation.triton_backends import interpreted
    from tests.evaluate import evaluate

    with installed("triton", interpreted(arch)):
        return evaluate(BY_NAME[name], "triton", dtype)


def _evaluate_in_autocast(name: str):
    """By a backend whose second product is an operator that autocast would give rounded operands."""
    from tests.emulation.installed import installed
    from tests.emulation.triton_backends import interpreted
    from tests.evaluate import evaluate

    backend = interpreted()
    backend.accumulate = lambda out, a, b: out.add_(a @ b)
    with installed("triton", backend), torch.autocast("cpu", dtype=torch.bfloat16):
        return evaluate(BY_NAME[name], "triton", torch.float32)


@pytest.mark.parametrize(
    "name", [case.name for case in CASES if case.name.startswith("full-tiles")] + ["larger", "clip"]
)
def test_in_the_configuration_for_sm_90(name, interpreter):
    """With descriptors and one exponential an element."""
    result = interpreter(_evaluate, name, torch.bfloat16, arch="90")
    assert_matches(result, BY_NAME[name], torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_mp_nce_on_the_grid(case, dtype, interpreter):
    assert_matches(interpreter(_evaluate, case.name, dtype), case, dtype)


def test_autocast_does_not_reach_into_the_engine(interpreter):
    assert_matches(interpreter(_evaluate_in_autocast, "rows-65"), BY_NAME["rows-65"], torch.float32)
