"""The PTX that nvcc emits for the CUDA kernels, executed: their inline assembly itself, through the whole engine."""

import functools

import pytest
import torch

from tests import similarity_cases as similarity
from tests.emulation.cuda.backends import executed_ptx
from tests.emulation.installed import installed
from tests.evaluate import assert_matches, evaluate
from tests.objective_cases import BY_NAME, some
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
    "sup_con-everything",
    "mil_nce-some-without",
    "mil_nce-candidates-many-constant",
    "siglip-everything",
    "siglip-temperature-0.005",
)


ON = [(dtype, 80) for dtype in DTYPES] + [(torch.bfloat16, 120)]


@pytest.mark.parametrize(
    ("name", "dtype", "architecture"), some([(name, *on) for name in NAMES for on in ON], 5), ids=str
)
def test_the_grid(name, dtype, architecture):
    with installed("cuda", executed_ptx(architecture)):
        assert_matches(evaluate(BY_NAME[name], "cuda", dtype), BY_NAME[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rectangles_off_the_diagonal(dtype):
    case = BY_NAME["classes-2"]
    with installed("cuda", executed_ptx(80, workspace_bytes=128 * 128 * torch.finfo(dtype).bits // 8)):
        assert_matches(evaluate(case, "cuda", dtype), case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["ragged", "five-domains", "strided"])
def test_domain_similarity(name, dtype):
    case = similarity.CASES[name]
    with installed("cuda", executed_ptx(80)):
        got = similarity.differentiate(case, dtype, functools.partial(domain_similarity, backend="cuda"))
    similarity.assert_matches(got, case, dtype)
