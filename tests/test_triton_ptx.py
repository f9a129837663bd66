"""The Triton kernels as compiled for sm_80: their PTX executed through the whole engine, over the shared grid of cases."""

import pytest
import torch

import uniclip_kernels
from tests.cases import BY_NAME, CASES
from tests.emulation.installed import installed
from tests.emulation.triton_backends import executed_ptx
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import reference

#: What the other dtypes run of the grid that bfloat16, which no interpreter gets right, runs in full.
SOME = ("rows-65", "larger", "padding", "many-positives", "five-domains", "mask-some-of-five", "temperature-0.005")
SOME += ("weight-negative", "norms-0.0001-10000", "none", "none-upstream-huge", "columns-513")


@pytest.fixture(scope="module")
def backend():
    return executed_ptx()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_mp_nce_in_bfloat16(case, backend):
    with installed("triton", backend):
        assert_matches(evaluate(case, "triton", torch.bfloat16), case, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SOME)
def test_mp_nce(name, dtype, backend):
    with installed("triton", backend):
        assert_matches(evaluate(BY_NAME[name], "triton", dtype), BY_NAME[name], dtype)


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_domain_similarity(dtype, tolerance, backend):
    torch.manual_seed(0)
    x, y = torch.randn(130, 40).to(dtype), torch.randn(70, 40).to(dtype)
    domains = torch.randint(3, (130,)), torch.randint(3, (70,))
    temperature, offset = 0.05 + torch.rand(3, 3), torch.randn(3, 3)
    upstream = torch.randn(130, 70)
    results = []
    for function, to, options in (
        (reference.domain_similarity, torch.float64, {}),
        (uniclip_kernels.domain_similarity, None, {"backend": "triton"}),
    ):
        leaves = [t.to(to or t.dtype).requires_grad_() for t in (x, y, temperature, offset)]
        with installed("triton", backend):
            s = function(*leaves[:2], *domains, temperature=leaves[2], offset=leaves[3], **options)
            results.append((s, *torch.autograd.grad(s, leaves, upstream.to(s.dtype))))
    for expected, got in zip(*results, strict=True):
        assert (got.double() - expected).norm() <= tolerance * expected.norm()
