"""Rows spread over ranks: loss and gradients are those of one process that has them all, on the grid and at random."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from tests.cases import Case
from tests.evaluate import Result, assert_matches, evaluate
from tests.objective_cases import BY_NAME
from tests.ranks import RankError, all_right, bytes_sent, ranks
from tests.test_random import cases
from uniclip_kernels import MPNCELoss, _exchange, mp_nce, siglip
from uniclip_kernels.cpu import CPUBackend

SOME = ("rows-65", "five-domains", "padding", "mask-some-of-five", "none", "empty", "few-samples", "norms-0.0001-10000")
SOME += (
    "mask-behind-much-padding",
    "temperature-0.005",
    "weight-negative",
    "many-positives",
    "classes-10-of-3-domains",
    "larger",
    "domains-40",
)
SOME = tuple(name for name in SOME if name in BY_NAME)
SOME += tuple(
    f"{objective}-{name}"
    for objective in ("sup_con", "mil_nce", "siglip")
    for name in ("rows", "padding-and-mask", "some-without", "everything", "candidates", "exclusions")
)
SOME += ("candidates-all-padding", "anchor-weight-wide", "anchor-weight-one")


def cut(n: int, size: int, ragged: bool) -> list[slice]:
    """Rows of each rank, none for the last but one if ``ragged``."""
    edges = np.linspace(0, n, size + 1).astype(int)
    if ragged and size > 1:
        edges[-2] = edges[-3]
    return [slice(*edge) for edge in itertools.pairwise(edges)]


def share(case: Case, ragged: bool, gradient_reduction: str = "sum", **options) -> tuple[Case, dict]:
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


def _evaluate_case(case: Case, dtype: torch.dtype, ragged: bool, options: dict) -> Result:
    return evaluate(share(case, ragged, **options), "cpu", dtype)


def _evaluate(name: str, dtype: torch.dtype, ragged: bool, options: dict) -> Result:
    return _evaluate_case(BY_NAME[name], dtype, ragged, options)


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


# All on three ranks, one way or the other, and on one, two and four a third of them each.
ON_RANKS = [
    (size, name, communication)
    for size in (1, 2, 3, 4)
    for way, communication in enumerate(("gather", "ring"))
    for i, name in enumerate(SOME)
    if i % 2 == way and (size == 3 or i % 3 == size % 3)
]


@pytest.mark.parametrize(("group", "name", "communication"), ON_RANKS, indirect=["group"])
def test_the_grid(name, communication, group):
    size, run = group
    case = BY_NAME[name]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = all_right(run(_evaluate, name, dtype, size % 2 == 1, dict(communication=communication)))
        assert_matches(whole(found, case.options.get("reduction")), case, dtype)


@given(cases(), st.sampled_from(["gather", "ring"]), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_inputs(pair, case, communication, ragged):
    found = all_right(pair(_evaluate_case, case, torch.float64, ragged, dict(communication=communication)))
    assert_matches(whole(found, case.options["reduction"]), case, torch.float64)


def _both_reductions(name: str) -> list[Result]:
    return [_evaluate(name, torch.float64, False, dict(gradient_reduction=way)) for way in ("mean", "sum")]


def test_gradients_for_ranks_that_are_averaged_and_for_ranks_that_are_added(group):
    size, run = group
    for mean, summed in all_right(run(_both_reductions, "siglip-everything")):
        np.testing.assert_allclose(mean.grad_embeddings, size * summed.grad_embeddings, rtol=1e-12)
        np.testing.assert_allclose(mean.grad_candidates, size * summed.grad_candidates, rtol=1e-12)
        np.testing.assert_allclose(mean.grad_anchor_weight, size * summed.grad_anchor_weight, rtol=1e-12)
        np.testing.assert_allclose(mean.grad_temperature, size * summed.grad_temperature, rtol=1e-12)


def _under_autocast(communication: str) -> list[Tensor]:
    options = dict(process_group=dist.group.WORLD, communication=communication, temperature=0.1)
    found = []
    for enabled in (False, True):
        z = torch.randn(10, 8, generator=torch.Generator().manual_seed(dist.get_rank())).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = mp_nce(z, torch.arange(10) // 2, **options)
        loss.backward()
        found.append(torch.cat([loss.detach()[None], z.grad.flatten()]))
    return found


@pytest.mark.parametrize("communication", ["gather", "ring"])
def test_autocast_changes_nothing(communication, pair):
    for plain, under_autocast in all_right(pair(_under_autocast, communication)):
        assert torch.equal(plain, under_autocast)


def _disagree(what: str) -> float:
    rank = dist.get_rank()
    z, ids = torch.randn(6, 5 if what == "D" and rank else 4), torch.arange(6) // 2
    z = z.to(torch.bfloat16 if what == "dtype" and rank else torch.float32)
    options = dict(process_group=dist.group.WORLD, temperature=torch.full((2, 2), 0.1))
    if what == "K" and rank:
        options["temperature"] = torch.full((3, 3), 0.1)
    if what == "mask":
        options["domain_mask"] = torch.tensor([[True, True], [True, rank == 0]])
    if what == "exclude_ids" and rank:
        options["exclude_ids"] = ids
    if what == "candidates" and rank:
        options |= dict(candidates=z, candidate_sample_ids=ids)
    if what == "gradient" and rank:
        z.requires_grad_()
    if what == "ids" and rank:
        ids = ids[1:]
    if what == "choice" and rank:
        options["communication"] = "rings"
    if what == "way":
        options["communication"] = "ring" if rank else "gather"
    if what == "reduction":
        options["reduction"] = "sum" if rank else "mean"
    if what == "anchor_weight" and rank:
        options["anchor_weight"] = torch.ones(6)
    return mp_nce(z, ids, torch.arange(6) % 2, **options).item()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("D", "ValueError: D must be the same on all ranks, got 4 on rank 0 and 5 on rank 1"),
        ("dtype", "ValueError: the dtype of embeddings"),
        ("K", "ValueError: K must be the same on all ranks, got 2 on rank 0 and 3 on rank 1"),
        ("mask", "ValueError: domain_mask"),
        ("exclude_ids", "ValueError: whether exclude_ids is given must be the same on all ranks"),
        ("candidates", "ValueError: whether candidates is given"),
        ("gradient", "ValueError: whether embeddings requires a gradient"),
        ("way", "ValueError: communication"),
        ("reduction", "ValueError: reduction"),
        ("anchor_weight", "ValueError: whether anchor_weight is given"),
    ],
)
def test_ranks_that_disagree_all_raise(what, message, pair):
    for result in pair(_disagree, what):
        assert isinstance(result, RankError)
        assert str(result).startswith(message)
    all_right(pair(_disagree, "nothing"))  # and go on


@pytest.mark.parametrize(
    ("what", "message"),
    [("ids", "ValueError: sample_ids must have shape (6,)"), ("choice", "ValueError: communication must be")],
)
def test_an_error_on_one_rank_is_known_to_all(what, message, pair):
    first, second = pair(_disagree, what)
    assert str(first).startswith("RuntimeError: rank 1 of the process group raised an error")
    assert str(second).startswith(message)
    all_right(pair(_disagree, "nothing"))


def _copy_of_a_module() -> bool:
    criterion, z, ids = MPNCELoss(process_group=dist.group.WORLD), torch.randn(6, 4), torch.arange(6) // 2
    copied = AveragedModel(criterion)
    assert copied.module.process_group is criterion.process_group
    assert copied.module.offset is not criterion.offset
    return torch.equal(copied(z, ids), criterion(z, ids))


def test_a_copy_of_a_module_has_its_process_group(pair):
    assert all(all_right(pair(_copy_of_a_module)))


def _second_derivative() -> None:
    z, ids = torch.randn(6, 4, requires_grad=True), torch.arange(6) // 2
    loss = mp_nce(z, ids, process_group=dist.group.WORLD)
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    (loss + grad.square().sum()).backward()


def test_a_second_derivative_is_a_clear_error(pair):
    for result in pair(_second_derivative):
        assert str(result).startswith("RuntimeError: mp_nce with a process_group has no second derivative")


def _dies(seconds: float) -> float:
    if dist.get_rank() == 1:
        os._exit(1)
    z, ids = torch.randn(6, 4, requires_grad=True), torch.arange(6) // 2
    return mp_nce(z, ids, process_group=dist.group.WORLD).item()


def test_a_rank_that_dies_ends_the_others_within_the_timeout():
    with ranks(3, timeout=10.0) as run:
        start = time.monotonic()
        found = run(_dies, 10.0)
        assert time.monotonic() - start < 60
    assert all(isinstance(result, RankError) for result in found)
    assert "RuntimeError" in str(found[0])


def _bytes_sent(communication: str, m: int, d: int) -> tuple[int, int]:
    """By this rank, forward and backward: of a gather what comes from the others, which is as much."""
    z = torch.randn(m, d, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.arange(m) // 2 + m * dist.get_rank()
    with bytes_sent() as sent:
        loss = mp_nce(z, ids, process_group=dist.group.WORLD, communication=communication)
        forward = sum(sent)
        loss.backward()
    return forward, sum(sent) - forward


@pytest.mark.parametrize("communication", ["gather", "ring"])
def test_bytes_sent_by_a_rank(communication, group):
    size, run = group
    m, d, numbers = 128, 256, 1000
    for forward, backward in all_right(run(_bytes_sent, communication, m, d)):
        rows, ids, terms = ((size - 1) * m * each for each in (2 * d, 24, 20))
        passes = 2 if communication == "ring" else 1  # ν, then the positives, in the forward pass of MP-NCE
        assert forward <= passes * (rows + ids) + numbers
        assert backward <= (0 if communication == "gather" else rows + ids) + terms + numbers


def _events(loss: Callable[..., Tensor], communication: str) -> tuple[str, str]:
    """What this rank does one after the other, forward and backward: "post" what is sent, compute "tiles", "wait"."""
    events: list[str] = []

    def noted(event: str, function: Callable) -> Callable:
        def wrapper(*args, **options):
            if events[-1:] != [event]:
                events.append(event)
            return function(*args, **options)

        return wrapper

    def posted(function: Callable) -> Callable:
        def wrapper(*args, **options):
            works = function(*args, **options)
            if works is None:  # it has been waited for
                return None
            noted("post", int)()
            return [watched(work) for work in works] if isinstance(works, list) else watched(works)

        return wrapper

    def watched(work: dist.Work) -> SimpleNamespace:
        return SimpleNamespace(wait=noted("wait", work.wait))

    z = torch.randn(6, 4, requires_grad=True)
    ids = torch.arange(6) // 2 + 6 * dist.get_rank()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((_exchange, "_all_gather"), (dist, "batch_isend_irecv")):
            patch.setattr(module, name, posted(getattr(module, name)))
        for name in ("negatives_forward", "positives_forward", "similarity_grad"):
            patch.setattr(CPUBackend, name, noted("tiles", getattr(CPUBackend, name)))
        value = loss(z, ids, process_group=dist.group.WORLD, communication=communication)
        forward = " ".join(events)
        events.clear()
        value.backward()
    return forward, " ".join(events)


@pytest.mark.parametrize("loss", [mp_nce, siglip])
@pytest.mark.parametrize("communication", ["gather", "ring"])
def test_tiles_are_computed_while_rows_travel(communication, loss):
    """A ring sends on what has come before it computes with it; mp_nce goes round again for its positives, which need ν."""
    once = "post tiles wait tiles" if communication == "gather" else "post tiles wait post tiles wait tiles"
    again = f" {once}" if communication == "ring" and loss is mp_nce else ""
    with ranks(3) as run:
        for forward, backward in all_right(run(_events, loss, communication)):
            assert forward == once + again
            assert backward == once
