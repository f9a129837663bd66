"""The Triton kernels under Triton's interpreter, through the whole engine, over the whole shared grid of cases."""

import pytest
import torch

from tests.emulation import interpreter as interpreting
from tests.evaluate import assert_matches
from tests.objective_cases import BY_NAME, GRID, some

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
    "name",
    [case.name for case in GRID if "full-tiles" in case.name] + ["larger", "clip", "sup_con-everything"],
)
def test_in_the_configuration_for_sm_90(name, interpreter):
    """With descriptors and one exponential an element."""
    result = interpreter(_evaluate, name, torch.bfloat16, arch="90")
    assert_matches(result, BY_NAME[name], torch.bfloat16)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (case, dtype)
        for dtype, *which in ((DTYPES[0], 6), (DTYPES[1], 12, 2), (DTYPES[2], 12, 9))
        for case in some(GRID, *which)
    ],
    ids=lambda value: repr(value),
)
def test_on_the_grid(case, dtype, interpreter):
    assert_matches(interpreter(_evaluate, case.name, dtype), case, dtype)


def _layout(sizes: tuple[int, int], k: int, samples: int):
    """By the kernels and by PyTorch, of own rows and candidates in K domains each."""
    from tests.emulation.triton_backends import interpreted
    from uniclip_kernels._layout import padded_rows, sort_rows, starts_of
    from uniclip_kernels._rows import Rows

    own, n = sizes[0], sum(sizes)
    rng = torch.Generator().manual_seed(k)
    sample_ids = torch.randint(-1, samples, (n,), generator=rng)
    domain_ids = torch.randint(k, (n,), generator=rng) + k * (torch.arange(n) >= own)
    mask = (torch.rand(k, k, generator=rng) < 0.7).repeat(2, 2)
    own_slots, others = (padded_rows(size, k, 128) for size in sizes)
    rows = Rows(sizes, torch.empty(n, 1), sample_ids, domain_ids, None)
    starts = starts_of(rows, k, None, [own_slots, own_slots + others], 128)
    args = sample_ids, domain_ids, 2 * k, mask
    return interpreted().sort_rows(*args, own_slots + others, starts), sort_rows(*args, 128, own_slots + others, starts)


@pytest.mark.parametrize("samples", [2, 40, 900])
@pytest.mark.parametrize(("sizes", "k"), [((500, 400), 1), ((300, 700), 3), ((130, 0), 2), ((900, 200), 16)])
def test_layout_with_candidates(sizes, k, samples, interpreter):
    got, expected = interpreter(_layout, sizes, k, samples)
    assert torch.equal(got.order, expected.order)
    assert torch.equal(got.slot, expected.slot)
    assert torch.equal(got.spans, expected.spans)
    assert torch.equal(got.tiles[:, :2], expected.tiles[:, :2])
    filled = expected.tiles[:, 1] > 0
    ids, tiles = (torch.cat([layout.ids, layout.tiles[filled, 2:].flatten()]) for layout in (got, expected))
    assert torch.equal(*(numbers.unique(return_inverse=True)[1] for numbers in (ids, tiles)))


def test_autocast_does_not_reach_into_the_engine(interpreter):
    assert_matches(interpreter(_evaluate_in_autocast, "rows-65"), BY_NAME["rows-65"], torch.float32)
