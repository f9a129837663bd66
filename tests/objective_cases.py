"""The grid of the other objectives, and of what all of them can be given: exclusions, weights of anchors, candidates.

``CASES`` continues that of ``tests.cases``, in the same form; ``BY_NAME`` finds one of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from tests import cases
from tests.cases import (
    Candidates,
    Case,
    every_fourth_not_finite,
    every_other,
    half_alike,
    make_case,
    mask_without,
    transposed,
)

OBJECTIVES = ("mp_nce", "sup_con", "mil_nce", "siglip")
SIGNED = torch.tensor([[1.0, -0.5, 0.0], [0.3, 2.0, 0.7], [-1.0, 0.2, 0.4]])
_random = torch.Generator().manual_seed(1)


def uniform(m: int, zeros: float = 0.0) -> Tensor:
    """(m,) weights in [0, 1), this share of them 0."""
    return torch.rand(m, generator=_random) * (torch.rand(m, generator=_random) >= zeros)


def _objectives() -> Iterator[Case]:
    """What the grid of ``tests.cases`` has for mp_nce, in few cases for each of the others."""
    for objective in OBJECTIVES[1:]:

        def case(name: str, *sizes: int, objective=objective, **options) -> Case:
            return make_case(f"{objective}-{name}", *sizes, objective=objective, **options)

        yield case("rows", 60)
        yield case("empty", 0)
        yield case("one-domain", 70, 33, domains=1)
        some = mask_without(3, (0, 0), (1, 2))
        yield case("padding-and-mask", 110, domains=3, samples=25, padding=0.2, domain_mask=some)
        yield case("five-domains", 120, 17, domains=5, samples=20)
        yield case("few-classes", 150, 16, samples=3)
        yield case("no-positive", 40, sample_ids=torch.randperm(40, generator=_random))
        yield case("no-negative", 40, samples=1)
        # With images compared to texts alone, all of sample 0: its images have no negatives, others no positives, and domain 2
        # has neither.
        domain_ids = torch.arange(60) % 3
        sample_ids = torch.where(domain_ids == 1, 0, torch.arange(60) // 3 % 4)
        lonely = ~mask_without(3, (0, 1))
        yield case("some-without", 60, domains=3, sample_ids=sample_ids, domain_ids=domain_ids, domain_mask=lonely)
        if objective == "siglip":  # tiles of negatives alone, most of them in one tail or the other
            alone = dict(sample_ids=torch.arange(520) // 2, domains=1)
            yield case("full-tiles", 520, 64, temperature=0.01, **alone)
        if objective != "mil_nce":
            yield case("weight-signed", 80, domains=3, samples=12, weight=SIGNED)
        yield case("temperature-0.005", 100, 40, temperature=0.005, offset=0.0)
        yield case("apart", 120, 32, domains=1, temperature=0.006, layout=half_alike)
        yield case("not-normalized", 60, 16, normalize=False)
        yield case("none", 90, reduction="none", padding=0.2)
        yield case("sum-strided", 50, 33, reduction="sum", upstream=-0.3, layout=every_other)
    clip = mask_without(2, (0, 0), (1, 1))
    pairs = dict(sample_ids=torch.arange(40).repeat(2), domain_ids=torch.arange(80) // 40, domain_mask=clip)
    yield make_case("siglip-scale-and-bias", 80, objective="siglip", temperature=0.1, offset=1.0, weight=1.0, **pairs)


def _arguments() -> Iterator[Case]:
    """What every objective can be given besides."""
    for objective in OBJECTIVES:

        def case(name: str, *sizes: int, objective=objective, **options) -> Case:
            return make_case(f"{objective}-{name}", *sizes, objective=objective, **options)

        yield case("exclusions", 90, domains=3, samples=30, groups=4, padding=0.1)
        yield case("anchor-weight", 80, padding=0.1, anchor_weight=uniform(80, 0.3))
        yield case("candidates", 70, candidates=30, domains=3, samples=25, padding=0.15)
        constant = dict(candidates=110, candidates_require_grad=False)
        yield case("candidates-many-constant", 30, 40, domains=1, samples=40, **constant)
        queries = dict(domain_ids=(torch.arange(100) >= 40).long(), domain_mask=mask_without(2, (0, 0), (1, 1)))
        yield case("candidates-of-another-domain", 40, candidates=60, samples=35, reduction="sum", **queries)
        everything = dict(domains=3, samples=30, groups=5, padding=0.1, anchor_weight=uniform(60, 0.1))
        everything |= dict(domain_mask=mask_without(3, (1, 1)), reduction="none", layout=every_other)
        yield case("everything", 60, 19, candidates=50, **everything)


def _exclusions() -> Iterator[Case]:
    for objective in ("mp_nce", "siglip"):
        one = torch.full((40,), 3)
        yield make_case(f"{objective}-exclusions-of-all", 40, objective=objective, exclude_ids=one, padding=0.1)
    samples = torch.arange(96) // 2 % 24
    top = torch.iinfo(torch.int64)
    some = torch.tensor([top.max, top.max - 1, 1 << 33, (1 << 33) + (1 << 32), top.min, -1])[samples % 6]
    yield make_case("exclusions-ids-huge", 96, sample_ids=samples, exclude_ids=some)
    narrow = dict(sample_ids=samples.int(), exclude_ids=(samples % 5 - 1).to(torch.int8))
    yield make_case("exclusions-ids-int8", 96, domains=3, objective="mil_nce", **narrow)
    mostly = torch.where(samples < 20, 0, -1)  # the rest are the negatives of all
    yield make_case("exclusions-mostly", 96, sample_ids=samples, exclude_ids=mostly, objective="sup_con")
    own_only = make_case(
        "", 60, candidates=40, sample_ids=torch.arange(100) // 2, exclude_ids=torch.arange(60) // 2 % 6
    )
    yield _renamed(own_only, "exclusions-of-own-rows-alone")


def _anchor_weights() -> Iterator[Case]:
    yield make_case("anchor-weight-all-zero", 40, anchor_weight=torch.zeros(40))
    yield make_case(
        "anchor-weight-one", 60, objective="sup_con", anchor_weight=(torch.arange(60) == 7).float(), samples=9
    )
    wide = 10 ** (8 * uniform(60) - 4)
    yield make_case("anchor-weight-wide", 60, objective="mil_nce", anchor_weight=wide)
    yield make_case(
        "anchor-weight-sum", 60, objective="siglip", anchor_weight=wide.flip(0), reduction="sum", upstream=0.2
    )
    ids, of_padding = torch.arange(60) // 2, uniform(60)
    ids[::5], of_padding[::5] = -1, torch.nan
    yield make_case("anchor-weight-of-padding-not-finite", 60, sample_ids=ids, anchor_weight=of_padding)


def _candidates() -> Iterator[Case]:
    for objective in ("mp_nce", "siglip"):
        yield make_case(f"{objective}-candidates-empty", 50, objective=objective, candidates=0)
    ids = torch.arange(90) // 3
    ids[60:] = -1
    yield make_case("candidates-all-padding", 60, objective="sup_con", sample_ids=ids, candidates=30)
    ids, domain_ids = torch.arange(112) % 30, torch.arange(112) % 2
    ids[::4], domain_ids[::4] = -1, 99
    whatever = dict(sample_ids=ids, domain_ids=domain_ids, layout=every_fourth_not_finite)
    yield make_case("candidates-padding-not-finite", 72, candidates=40, **whatever)
    yield make_case("candidates-no-rows", 0, candidates=20, samples=5)
    yield make_case("candidates-one-row", 1, candidates=60, samples=10, objective="sup_con")
    yield make_case("candidates-two-rows-one-candidate", 2, candidates=1, samples=1, objective="mil_nce")
    queue = torch.cat([torch.arange(40), torch.arange(100) % 50])
    yield make_case("candidates-hold-all-positives", 40, sample_ids=queue, domains=1, candidates=100, temperature=0.07)
    cold = dict(candidates=60, temperature=0.005, offset=0.0)
    yield make_case("candidates-temperature-0.005", 60, 40, objective="sup_con", **cold)
    yield make_case("candidates-not-normalized", 40, 16, objective="mil_nce", candidates=50, normalize=False)
    yield make_case("candidates-transposed", 50, 33, objective="mil_nce", candidates=40, layout=transposed)
    apart = dict(domain_ids=(torch.arange(90) >= 50).long(), domain_mask=mask_without(2, (0, 1)))
    yield make_case("candidates-out-of-reach", 50, candidates=40, **apart)
    ignored = dict(domains=7, temperature=0.1, offset=torch.tensor(0.1), weight=1.5)
    yield make_case("candidates-domains-ignored", 40, candidates=30, **ignored)
    narrow = dict(sample_ids=(torch.arange(80) % 25).to(torch.int16), domain_ids=(torch.arange(80) % 2).to(torch.uint8))
    yield make_case("candidates-ids-int16", 50, candidates=30, objective="siglip", **narrow)
    rows, sample_ids = torch.randn(40, 24, generator=_random), torch.arange(40) // 2
    copies = Candidates(rows[:25], sample_ids[:25])  # in domain 0
    tables = dict(temperature=0.05 + torch.rand(3, 3, generator=_random))
    yield Case("candidates-copies", rows, sample_ids, torch.arange(40) % 3, tables, candidates=copies)
    yield Case("candidates-all-defaults", rows, sample_ids, objective="mil_nce", candidates=copies)


def _renamed(case: Case, name: str) -> Case:
    return Case(**{**vars(case), "name": name})


CASES = [*_objectives(), *_arguments(), *_exclusions(), *_anchor_weights(), *_candidates()]
#: Of all objectives.
GRID = [*cases.CASES, *CASES]


def some(of: list, one_in: int, first: int = 0) -> list:
    """One in so many, where the whole grid would take too long; UNICLIP_ALL_CASES=1 takes all."""
    return of if os.environ.get("UNICLIP_ALL_CASES") == "1" else of[first::one_in]


BY_NAME = {case.name: case for case in GRID}
