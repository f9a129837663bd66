"""Rows spread over two ranks, whose kernels are those of GPUs: CUDA's on the host, Triton's under its interpreter."""

import os
from unittest import mock

import pytest
import torch

from tests.evaluate import Result, assert_matches, evaluate
from tests.objective_cases import BY_NAME
from tests.ranks import all_right, ranks
from tests.test_ranks import share, whole
from uniclip_kernels import _backend

CASES = (
    "clip",
    "mask-behind-much-padding",
    "mil_nce-some-without",
    "candidates-domains-ignored",
    "sup_con-some-without",
    "siglip-some-without",
)


@pytest.fixture(scope="module", params=["cuda", "triton"])
def on_two_ranks(request):
    """A backend, and processes for it: Triton decides at its import whether it interprets."""
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"), ranks(2, start="spawn") as run:
        yield request.param, run


def _evaluate(name: str, backend: str, dtype: torch.dtype, communication: str) -> Result:
    from tests.emulation.cuda.backends import emulated
    from tests.emulation.installed import installed
    from tests.emulation.triton_backends import interpreted

    made: _backend.Backend = emulated() if backend == "cuda" else interpreted()
    made.workspace_bytes = 128 * 128 * dtype.itemsize
    with installed(backend, made):
        return evaluate(share(BY_NAME[name], ragged=False, communication=communication), backend, dtype)


@pytest.mark.parametrize("communication", ["gather", "ring"])
@pytest.mark.parametrize("name", CASES)
def test_two_ranks(name, on_two_ranks, communication):
    case, (backend, run) = BY_NAME[name], on_two_ranks
    found = all_right(run(_evaluate, name, backend, torch.bfloat16, communication))
    assert_matches(whole(found, case.options.get("reduction")), case, torch.bfloat16)
