"""The Triton kernels under Triton's interpreter, through the whole engine, over the whole shared grid of cases."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest
import torch

from tests.cases import BY_NAME, CASES
from tests.evaluate import assert_matches

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def interpreter():
    """A process of its own, since Triton decides at its import whether it interprets."""
    context = multiprocessing.get_context("spawn")
    environment = mock.patch.dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    with environment, ProcessPoolExecutor(1, context) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result()


def _evaluate(name: str, dtype: torch.dtype, arch: str = "80"):
    from tests.emulation.installed import installed
    from tests.emulation.triton_backends import interpreted
    from tests.evaluate import evaluate

    with installed("triton", interpreted(arch)):
        return evaluate(BY_NAME[name], "triton", dtype)


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
