"""The Triton kernels as compiled for sm_80: their PTX executed through the whole engine, over the shared grid of cases."""

import functools

import pytest
import torch

from tests import similarity_cases as similarity
from tests.cases import make_case
from tests.emulation.installed import installed
from tests.emulation.triton_backends import executed_ptx
from tests.evaluate import assert_matches, evaluate
from tests.objective_cases import BY_NAME, GRID, some
from uniclip_kernels import domain_similarity

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

OTHERS = torch.float32, torch.float16
#: What the other dtypes run of the grid, of which bfloat16, which no interpreter gets right, runs a part.
SOME = (
    "rows-65",
    "many-positives",
    "mask-some-of-five",
    "temperature-0.005",
    "norms-0.0001-10000",
    "none-upstream-huge",
)
SOME += ("sup_con-everything", "mil_nce-some-without", "siglip-temperature-0.005")
#: Deep enough for every stage of the loops over columns.
DEEP = make_case("deep", 40, 200)


@pytest.fixture(scope="module")
def backend():
    return executed_ptx()


@pytest.mark.parametrize("case", some(GRID, 20), ids=repr)
def test_in_bfloat16(case, backend):
    with installed("triton", backend):
        assert_matches(evaluate(case, "triton", torch.bfloat16), case, torch.bfloat16)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for i, case in enumerate([*map(BY_NAME.get, SOME), DEEP]) for dtype in OTHERS[: 1 + (i % 3 == 1)]],
    ids=repr,
)
def test_in_other_dtypes(case, dtype, backend):
    with installed("triton", backend):
        assert_matches(evaluate(case, "triton", dtype), case, dtype)


def test_many_rectangles():
    """A workspace of one tile: the diagonal, the others and their running statistics, each many times."""
    case = BY_NAME["larger"]
    with installed("triton", executed_ptx(workspace_bytes=128 * 128 * 2)):
        assert_matches(evaluate(case, "triton", torch.bfloat16), case, torch.bfloat16)


def test_same_bits_again(backend):
    with installed("triton", backend):
        first, second = (evaluate(BY_NAME["larger"], "triton", torch.bfloat16) for _ in range(2))
    assert (first.loss == second.loss).all()
    assert (first.grad_embeddings == second.grad_embeddings).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["one", "ragged", "five-domains", "transposed"])
def test_domain_similarity(name, dtype, backend):
    case = similarity.CASES[name]
    with installed("triton", backend):
        got = similarity.differentiate(case, dtype, functools.partial(domain_similarity, backend="triton"))
    similarity.assert_matches(got, case, dtype)
