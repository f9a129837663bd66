"""Rows spread over ranks: loss and gradients are those of one process that has them all, on the grid and at random."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.cases import Case
from tests.evaluate import Result, assert_matches, evaluate
from tests.objective_cases import BY_NAME
from tests.ranks import RankError, ranks

SOME = ("rows-65", "five-domains", "padding", "mask-some-of-five", "none", "empty", "few-samples", "norms-0.0001-10000")
SOME += ("temperature-0.005", "weight-negative", "many-positives", "classes-10-of-3-domains", "larger", "domains-40")
SOME = tuple(name for name in SOME if name in BY_NAME)
SOME += tuple(
    f"{objective}-{name}"
    for objective in ("sup_con", "mil_nce", "siglip")
    for name in ("rows", "padding-and-mask", "some-without", "everything", "candidates", "exclusions")
)
SOME += ("candidates-all-padding", "anchor-weight-wide", "anchor-weight-one")


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def group(request):
    with ranks(request.param) as run:
        yield request.param, run


@pytest.fixture(scope="module")
def pair():
    with ranks(2) as run:
        yield run


def cut(n: int, size: int, ragged: bool) -> list[slice]:
    """Rows of each rank, for the second of several ranks none if ``ragged``."""
    edges = np.linspace(0, n, size + 1).astype(int)
    if ragged and size > 1:
        edges[2] = edges[1]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def _share(case: Case, ragged: bool, gradient_reduction: str = "sum", **options) -> tuple[Case, dict]:
    """What this rank has of a case."""
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = cut(len(case.embeddings), size, ragged)[rank]

    def part(x, rows):
        return x[rows] if isinstance(x, torch.Tensor) else x

    given = {n: part(v, rows) if n in ("exclude_ids", "anchor_weight") else v for n, v in case.options.items()}
    candidates = case.candidates
    if candidates is not None:
        of = cut(len(candidates.embeddings), size, False)[rank]
        ids = {n: part(getattr(candidates, n), of) for n in ("sample_ids", "domain_ids", "exclude_ids")}
        candidates = dataclasses.replace(candidates, **ids, layout=lambda z: case.candidates.layout(z)[of])
    given |= dict(process_group=dist.group.WORLD, gradient_reduction=gradient_reduction, **options)
    return dataclasses.replace(
        case,
        layout=lambda z: case.layout(z)[rows],
        sample_ids=part(case.sample_ids, rows),
        domain_ids=part(case.domain_ids, rows),
        candidates=candidates,
        options=given,
        upstream=part(torch.as_tensor(case.upstream), rows) if np.ndim(case.upstream) else case.upstream,
    )


def _evaluate(name: str, dtype: torch.dtype, ragged: bool, options: dict) -> Result:
    torch.manual_seed(0)
    return evaluate(_share(BY_NAME[name], ragged, **options), "cpu", dtype)


def whole(results: list[Result], reduction: str | None) -> Result:
    """Of all ranks: rows behind each other, tables added up."""

    def joined(field: str):
        parts = [getattr(result, field) for result in results]
        if parts[0] is None:
            return None
        if field == "loss" and reduction != "none":
            assert all(np.array_equal(part, parts[0], equal_nan=True) for part in parts)
            return parts[0]
        return sum(parts) if field in ("grad_temperature", "grad_offset") else np.concatenate(parts)

    return Result(*(joined(field.name) for field in dataclasses.fields(Result)))


@pytest.mark.parametrize("communication", ["gather", "ring"])
@pytest.mark.parametrize("name", SOME)
def test_the_grid(name, communication, group):
    size, run = group
    case = BY_NAME[name]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = run(_evaluate, name, dtype, size % 2 == 1, dict(communication=communication))
        for result in found:
            if isinstance(result, RankError):
                raise result
        assert_matches(whole(found, case.options.get("reduction")), case, dtype)
