"""The sources of the CUDA kernels executed on the host, through the whole engine, over the shared grid of cases."""

import functools
import math

import pytest
import torch

from tests import similarity_cases as similarity
from tests.cases import BY_NAME, CASES, make_case
from tests.emulation.cuda.backends import emulated
from tests.emulation.installed import installed
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import domain_similarity
from uniclip_kernels._layout import sort_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_mp_nce_on_the_grid(case, dtype):
    with installed("cuda", emulated()):
        assert_matches(evaluate(case, "cuda", dtype), case, dtype)


@pytest.mark.parametrize("thread_order", [1, 2, 3])
@pytest.mark.parametrize("name", ["larger", "mask-some-of-five", "classes-10-of-3-domains", "none"])
def test_the_order_of_threads_changes_no_bit(name, thread_order):
    case = BY_NAME[name]
    with installed("cuda", emulated()):
        first = evaluate(case, "cuda", torch.bfloat16)
    with installed("cuda", emulated(thread_order)):
        second = evaluate(case, "cuda", torch.bfloat16)
    assert first.loss.tobytes() == second.loss.tobytes()
    assert first.grad_embeddings.tobytes() == second.grad_embeddings.tobytes()
    assert first.grad_temperature.tobytes() == second.grad_temperature.tobytes()


OFF_THE_DIAGONAL = (
    "larger",
    "mask-some-of-five",
    "five-domains-two-empty",
    "rows-200-one-domain",
    "classes-uneven",
    "classes-2-of-3-domains",
)


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OFF_THE_DIAGONAL)
def test_rectangles_off_the_diagonal(name, dtype, side):
    workspace_bytes = (side * 128) ** 2 * dtype.itemsize
    with installed("cuda", emulated(workspace_bytes=workspace_bytes)):
        assert_matches(evaluate(BY_NAME[name], "cuda", dtype), BY_NAME[name], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_finite_show_where_all_are_of_one_sample(dtype):
    """No dot product of negatives is computed there."""
    case = make_case("one-class-not-finite", 200, samples=1, layout=lambda z: torch.where(z == z[3], torch.nan, z))
    with installed("cuda", emulated()):
        assert not math.isfinite(evaluate(case, "cuda", dtype).loss)


@pytest.mark.parametrize("k", [1, 3, 1000])
def test_spans(k):
    """As the layout's definition says, for few and for many samples."""
    rng = torch.Generator().manual_seed(k)
    domain_ids, mask = torch.randint(k, (900,), generator=rng), torch.rand(k, k, generator=rng) < 0.7
    sizes = torch.bincount(domain_ids, minlength=k).tolist() if k > 3 else None
    for samples in (2, 40, 900):
        sample_ids = torch.randint(-1, samples, (900,), generator=rng)
        expected = sort_rows(sample_ids, domain_ids, k, mask, 128, sizes)
        got = emulated().sort_rows(sample_ids, domain_ids, k, mask, sizes)
        assert torch.equal(got.spans, expected.spans)
        assert torch.equal(got.order, expected.order)
        assert torch.equal(got.tiles[:, :2], expected.tiles[:, :2])


@pytest.fixture
def tf32_allowed():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_tf32_where_pytorch_allows_it(tf32_allowed):
    case = BY_NAME["rows-129"]
    with installed("cuda", emulated()):
        rounded = evaluate(case, "cuda", torch.float32)
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    with installed("cuda", emulated()):
        exact = evaluate(case, "cuda", torch.float32)
    error = abs(rounded.loss - exact.loss)
    assert 1e-7 < error < 1e-3, "TF32 has 10 bits: some difference, and no large one"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", similarity.CASES)
def test_domain_similarity(name, dtype):
    case = similarity.CASES[name]
    with installed("cuda", emulated()):
        got = similarity.differentiate(case, dtype, functools.partial(domain_similarity, backend="cuda"))
    similarity.assert_matches(got, case, dtype)
