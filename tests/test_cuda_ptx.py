"""The PTX that nvcc emits for the CUDA kernels, executed: their inline assembly itself, through the whole engine."""

import pytest
import torch

from tests.cases import BY_NAME
from tests.emulation.cuda.backends import emulated, executed_ptx
from tests.emulation.installed import installed
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import domain_similarity

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = (
    "columns-7",
    "rows-129",
    "padding",
    "mask-texts",
    "mask-some-of-five",
    "temperature-0.005",
    "few-samples",
    "none",
    "unaligned",
)


@pytest.mark.parametrize("architecture", [80, 120])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_mp_nce(name, dtype, architecture):
    with installed("cuda", executed_ptx(architecture)):
        assert_matches(evaluate(BY_NAME[name], "cuda", dtype), BY_NAME[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rectangles_off_the_diagonal(dtype):
    case = BY_NAME["rows-129-one-domain"]
    with installed("cuda", executed_ptx(80, workspace_bytes=128 * 128 * torch.finfo(dtype).bits // 8)):
        assert_matches(evaluate(case, "cuda", dtype), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_domain_similarity_is_that_of_the_emulation(dtype):
    x, y = torch.randn(130, 40).to(dtype), torch.randn(37, 40).to(dtype)
    ids = torch.randint(3, (130,)), torch.randint(3, (37,))
    tables = 0.1 + torch.rand(3, 3), 0.2 * torch.rand(3, 3)

    def differentiate():
        leaves = [t.clone().requires_grad_() for t in (x, y, *tables)]
        s = domain_similarity(*leaves[:2], *ids, temperature=leaves[2], offset=leaves[3], backend="cuda")
        return s, *torch.autograd.grad(s.square().sum(), leaves)

    with installed("cuda", emulated()):
        expected = differentiate()
    with installed("cuda", executed_ptx(80)):
        got = differentiate()
    for value, other in zip(got, expected, strict=True):
        assert (value - other).abs().max() <= 4 * torch.finfo(value.dtype).eps * other.abs().max()
