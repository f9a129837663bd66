"""The sources of the CUDA kernels executed on the host, through the whole engine, over the shared grid of cases."""

import functools
import math

import pytest
import torch

from tests import similarity_cases as similarity
from tests.cases import make_case
from tests.emulation.cuda.backends import emulated
from tests.emulation.installed import installed
from tests.evaluate import assert_matches, evaluate
from tests.objective_cases import BY_NAME, GRID, some
from uniclip_kernels import domain_similarity
from uniclip_kernels._layout import sort_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (case, dtype)
        for dtype, *which in ((DTYPES[0], 3), (DTYPES[1], 3, 1), (DTYPES[2], 3, 2))
        for case in some(GRID, *which)
    ],
    ids=repr,
)
def test_the_grid(case, dtype):
    with installed("cuda", emulated()):
        assert_matches(evaluate(case, "cuda", dtype), case, dtype)


MANY_TILES = (
    "larger",
    "mask-some-of-five",
    "classes-10-of-3-domains",
    "none",
    "sup_con-candidates",
    "siglip-everything",
)


@pytest.mark.parametrize("thread_order", [1, 2, 3])
@pytest.mark.parametrize("name", MANY_TILES)
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
    "sup_con-few-classes",
    "mil_nce-everything",
    "siglip-five-domains",
    "siglip-candidates",
)


#: Each in all dtypes, by turns with either side.
SIDES = [
    (name, dtype, side)
    for i, name in enumerate(OFF_THE_DIAGONAL)
    for j, dtype in enumerate(DTYPES)
    for side in ((1, 2) if (i + j) % 2 else (2, 1))
]


@pytest.mark.parametrize(("name", "dtype", "side"), some(SIDES, 2), ids=str)
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_tails_of_softplus(dtype):
    opposite = make_case("siglip-s-400", 60, 1, objective="siglip", temperature=0.0025, offset=0.0)
    alone = dict(sample_ids=torch.arange(60), temperature=0.1)
    below, above = (make_case(f"siglip-{b}", 60, objective="siglip", offset=b, **alone) for b in (3.0, -3.0))
    for case in (opposite, below, above):
        with installed("cuda", emulated()):
            assert_matches(evaluate(case, "cuda", dtype), case, dtype)


@pytest.mark.parametrize("objective", ["sup_con", "siglip"])
def test_candidates_are_no_anchors(objective):
    """No block of the forward pass of positives has them for rows."""
    backend, seen = emulated(), {}
    ops = backend.ops

    def recorded(name):
        def call(*args):
            seen[name] = args
            getattr(ops, name)(*args)

        return call

    backend.ops = type("Recorder", (), {"__getattr__": lambda self, name: recorded(name)})()
    with installed("cuda", backend):
        evaluate(BY_NAME[f"{objective}-candidates"], "cuda", torch.bfloat16)
    rows, *_, parts = seen["cuda_positives_forward"]
    assert (len(rows), parts.shape[-1]) == (6 * 128, 3 * 128)


@pytest.mark.parametrize("apart", [False, True], ids=["starts follow", "starts given"])
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_the_layout(k, apart):
    """As its definition says, for few and for many samples; also with empty tiles before the upper half of the domains."""
    rng = torch.Generator().manual_seed(k)
    domain_ids, mask = torch.randint(2 * k, (900,), generator=rng), torch.rand(2 * k, 2 * k, generator=rng) < 0.7
    for samples in (2, 40, 900):
        sample_ids = torch.randint(-1, samples, (900,), generator=rng)
        filled = torch.bincount(domain_ids[sample_ids >= 0], minlength=2 * k)
        edges = torch.cat([filled.new_zeros(1), ((filled + 127) // 128 * 128).cumsum(0)])
        slots, starts = int(edges[-1]) + 256, None
        if apart:
            starts = edges
            starts[k:] += 256
        expected = sort_rows(sample_ids, domain_ids, 2 * k, mask, 128, slots, starts)
        got = emulated().sort_rows(sample_ids, domain_ids, 2 * k, mask, slots, starts)
        held = expected.tiles[:, 1] > 0
        assert torch.equal(got.spans, expected.spans)
        assert torch.equal(got.order, expected.order)
        assert torch.equal(got.slot, expected.slot)
        assert torch.equal(got.tiles[:, :2], expected.tiles[:, :2])
        assert torch.equal(_groups(got.ids), _groups(expected.ids))
        assert torch.equal(_groups(got.tiles[held, 2:]), _groups(expected.tiles[held, 2:]))


def _groups(numbers: torch.Tensor) -> torch.Tensor:
    """The numbers of samples as dense ones: backends number them as they like."""
    return numbers.unique(return_inverse=True)[1]


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
