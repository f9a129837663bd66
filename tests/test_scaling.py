"""The model of benchmarks/scaling.py has the bytes that are counted; a ring takes the same memory with any number of ranks."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.distributed as dist

from benchmarks import scaling
from benchmarks.providers.packages import open_clip_losses
from benchmarks.scaling import H100, Problem
from tests.live_tensors import LiveTensors
from tests.ranks import RankError, bytes_sent, ranks
from uniclip_kernels import mp_nce, siglip

ROWS, DIM = 128, 2048  # wide, for what tiles take to count little
BLOCK = 4 * ROWS * DIM  # bytes
SIZES = (2, 4, 8)
LOSSES = {"mp_nce": mp_nce, "siglip": siglip}


def _counted(size: int, way: str, loss: str) -> tuple[int, int] | None:
    """Bytes that this rank of the first ``size`` sends in a step, and holds in tensors at its peak."""
    group = dist.new_group(list(range(size)))
    if dist.get_rank() >= size:
        return None
    z, ids = torch.randn(ROWS, DIM, requires_grad=True), torch.arange(ROWS) // 2 + ROWS * dist.get_rank()
    with bytes_sent() as sent, LiveTensors() as live:
        LOSSES[loss](z, ids, process_group=group, communication=way).backward()
    return sum(sent), live.peak


def _counted_of_clip(local_loss: bool) -> tuple[int, int]:
    warnings.simplefilter("ignore", FutureWarning)
    group = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    image, text = (torch.randn(ROWS // 2, DIM, requires_grad=True) for _ in range(2))
    with bytes_sent() as sent, LiveTensors() as live:
        open_clip_losses().ClipLoss(local_loss, gather_with_grad=True, **group)(image, text, 10.0).backward()
    return sum(sent), live.peak


@pytest.fixture(scope="module")
def counted():
    """``counted(function, *args)``: the most of any rank of eight."""
    with ranks(max(SIZES)) as run:

        @functools.cache
        def most(function, *args) -> tuple[int, ...]:
            results = [result for result in run(function, *args) if result is not None]
            if errors := [result for result in results if isinstance(result, RankError)]:
                raise errors[0]
            return tuple(map(max, zip(*results, strict=True)))

        yield most


def modelled(size: int, way: str, loss: str = "mp_nce") -> scaling.Cost:
    rounds = 2 if loss == "mp_nce" else 1
    return scaling.WAYS[way](Problem(size, ROWS, DIM, element=4, compared=1, rounds=rounds), H100)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", scaling.OURS)
@pytest.mark.parametrize("size", SIZES)
def test_bytes_and_memory_of_a_rank(size, way, loss, counted):
    sent, memory = counted(_counted, size, way, loss)
    model = modelled(size, way, loss)
    assert 0 <= sent - model.sent <= 200 * size  # what the ranks agree on, and sums
    assert 0.7 * model.memory <= memory <= 1.1 * model.memory


@pytest.mark.parametrize(("way", "local_loss"), [("ClipLoss", False), ("ClipLoss, local_loss", True)])
def test_bytes_and_memory_of_open_clip(way, local_loss, counted):
    pytest.importorskip("open_clip")
    sent, memory = counted(_counted_of_clip, local_loss)
    model = modelled(max(SIZES), way)
    assert sent == model.sent
    assert 0.7 * model.memory <= memory <= 1.1 * model.memory


def test_the_memory_of_a_ring_is_that_of_any_number_of_ranks(counted):
    """With two ranks no block arrives while another is computed with. Were blocks kept, it would grow as that of a gather."""
    ring, gather = ([counted(_counted, size, way, "mp_nce")[1] for size in SIZES] for way in ("ring", "gather"))
    assert ring[0] <= ring[1]
    assert ring[2] - ring[1] < BLOCK / 10
    assert gather[2] - gather[1] > 4 * 2 * BLOCK  # four ranks more, whose rows are there more than twice


def test_flops_lie_between_each_pair_once_and_each_pair_twice():
    for size in (*SIZES, 4096):
        whole = (size * ROWS) ** 2 * DIM / size
        assert 4 * whole <= modelled(size, "gather").flops == modelled(size, "ring").flops < 6 * whole
        assert modelled(size, "each pair once").flops == 4 * whole


@pytest.mark.parametrize("size", [8, 64, 512, 4096])
def test_what_docs_ranks_says_of_the_model(size):
    def ratio(rows: int, way: str, **options) -> float:
        problem = Problem(size, rows, **options)
        return scaling.WAYS[way](problem, H100).seconds / scaling.gather(problem, H100).seconds

    assert ratio(16384, "each pair once") < 1 <= ratio(8000, "each pair once")
    assert ratio(8192 * 3 // 2, "each pair once", compared=1) < 1 <= ratio(4000, "each pair once", compared=1)
    assert 0.70 < ratio(65536, "each pair once") < 0.73
    assert ratio(65536, "ring") < 1.15 < 1.5 < ratio(32768, "ring")
    if size == 4096:
        assert 1.9 < ratio(1024, "each pair once") < 2


def test_the_table_is_that_of_the_model():
    """Run python -m benchmarks.scaling after a change."""
    assert (scaling.RESULTS / "scaling.md").read_text() == scaling.markdown(H100)


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    scaling.plot(tmp_path / "scaling.svg", H100)
    assert (tmp_path / "scaling.svg").read_text().count("each pair once") == 1
    assert (scaling.RESULTS / "scaling.svg").stat().st_size < 60_000
