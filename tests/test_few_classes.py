"""Classes in place of samples of a few rows: positives fill whole tiles, which must be right and must not cost more."""

from collections.abc import Iterator

import pytest
import torch

from tests.cases import Case, make_case, mask_without
from tests.emulation import interpreter as interpreting
from tests.emulation.installed import installed
from tests.emulation.triton_backends import executed_ptx
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels._layout import Layout, padded_rows, sort_rows

BLOCK = 128


def _few_classes() -> Iterator[Case]:
    """Tiles that hold one class, two, and many; pairs of tiles all of positives, all of negatives, and mixed."""
    yield make_case("one-class", 300, samples=1, domains=1)
    yield make_case("two-classes", 400, samples=2, domains=1)
    yield make_case("two-classes-in-whole-tiles", 512, 32, sample_ids=torch.arange(512) // 256, domains=1)
    yield make_case("ten-classes", 420, samples=10, domains=1, reduction="none", padding=0.1)
    negative = torch.tensor([[1.0, -0.5, 0.2], [0.3, 2.0, -1.0], [0.0, 0.7, 1.0]])
    yield make_case("one-class-of-three-domains", 400, samples=1, domains=3, weight=negative)
    yield make_case(
        "sup_con-one-class-of-three-domains", 400, samples=1, domains=3, weight=negative, objective="sup_con"
    )
    yield make_case("mil_nce-two-classes-in-whole-tiles", 512, sample_ids=torch.arange(512) // 256, objective="mil_nce")
    yield make_case("siglip-ten-classes", 420, samples=10, domains=1, objective="siglip")
    mask = mask_without(3, (0, 0), (1, 2))
    yield make_case("two-classes-masked", 430, samples=2, domains=3, domain_mask=mask, padding=0.1, weight=negative)


FEW_CLASSES = {case.name: case for case in _few_classes()}


@pytest.fixture(scope="module")
def interpreter():
    with interpreting.process() as run:
        yield run


def _interpreted(name: str, dtype: torch.dtype, arch: str):
    """What comes of a case, and how many products its tiles take on a part that takes 64 columns at a time."""
    from triton.runtime.interpreter import InterpreterBuilder

    from tests.emulation.triton_backends import interpreted

    backend, products = interpreted(arch), []
    create_dot = InterpreterBuilder.create_dot
    InterpreterBuilder.create_dot = lambda *args: products.append(1) or create_dot(*args)
    try:
        with installed("triton", backend):
            return evaluate(FEW_CLASSES[name], "triton", dtype), len(products)
    finally:
        InterpreterBuilder.create_dot = create_dot


@pytest.mark.parametrize("name", FEW_CLASSES)
def test_interpreted(name, interpreter):
    case = FEW_CLASSES[name]
    result, products = interpreter(_interpreted, name, torch.bfloat16, "90")
    assert_matches(result, case, torch.bfloat16)
    k = case.num_domains
    slots = padded_rows(len(case.sample_ids), k, BLOCK)
    layout = sort_rows(case.sample_ids, case.domain_ids, k, case.options.get("domain_mask"), BLOCK, slots, None)
    assert products == sum(tiles(layout, case.options.get("domain_mask")))


@pytest.mark.parametrize("name", FEW_CLASSES)
def test_executed_ptx(name):
    with installed("triton", executed_ptx()):
        assert_matches(evaluate(FEW_CLASSES[name], "triton", torch.bfloat16), FEW_CLASSES[name], torch.bfloat16)


def tiles(layout: Layout, domain_mask: torch.Tensor | None = None) -> tuple[int, int, int]:
    """How many are computed for negatives, forward and backward, for positives forward, and backward, in one rectangle."""
    domain, _, first, last = layout.tiles.long().unbind(1)
    live = (domain >= 0)[:, None] & (domain >= 0)
    if domain_mask is not None:
        live &= domain_mask[domain][:, domain]
    alike = torch.minimum(first[:, None], first) == torch.maximum(last[:, None], last)
    start, end = layout.spans.long().unbind(-1)
    column = torch.arange(len(domain))
    of_positives = ((start[..., None] <= column) & (column < end[..., None])).any(1)
    counts = ((live & ~alike).triu(), of_positives, of_positives.triu())
    negatives, forward, backward = (int(of_kind.sum()) for of_kind in counts)
    return 2 * negatives, forward, backward


def flops(classes: int, m: int = 8192, d: int = 512) -> int:
    """Of one step with one domain."""
    layout = sort_rows(torch.arange(m) % classes, None, 1, None, BLOCK, padded_rows(m, 1, BLOCK), None)
    second_product = 2 * layout.ids.numel() ** 2 * d
    return sum(tiles(layout)) * 2 * BLOCK**2 * d + second_product


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_flops(classes):
    assert flops(classes) <= 1.25 * flops(8192 // 3)
