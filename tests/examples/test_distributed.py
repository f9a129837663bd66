"""Ranks and chunks change rounding alone: a run on two is that of one process, and goes on where another number stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import train
from uniclip import checkpoint
from uniclip.options import parse, settings

from tests.examples.conftest import EXAMPLES
from tests.examples.runs import arguments, ctrl_c_after, metrics, numbers, run
from tests.ranks import RankError

EPOCHS = ("--epochs", "2")  # of three steps
TRAIN = str(EXAMPLES / "train.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert run(folder, out, *EPOCHS) == 0
    return out


def assert_alike(out: Path, alone: Path) -> None:
    """To rounding, in what was measured, and in the mean gradients: AdamW's steps do not show how large these are."""
    for row, expected in zip(numbers(out), numbers(alone), strict=True):
        assert row.keys() == expected.keys()
        assert row.pop("loss") == pytest.approx(expected.pop("loss"), rel=1e-6)
        for name in ("temperature", "offset"):
            torch.testing.assert_close(torch.tensor(row.pop(name)), torch.tensor(expected.pop(name)))
        assert row == expected  # recall among them, which is a few numbers of hits
    found, expected = (mean_gradients(folder) for folder in (out, alone))
    assert found.keys() == expected.keys()
    for i in found:
        assert (found[i] - expected[i]).norm() <= 1e-3 * expected[i].norm(), i


def mean_gradients(out: Path) -> dict[int, torch.Tensor]:
    optimizer = torch.load(out / "checkpoint.pt", weights_only=True)["state"]["trainer"]["optimizer"]
    return {i: of_parameter["exp_avg"] for i, of_parameter in optimizer["state"].items()}


def test_two_ranks_in_chunks_train_as_one_process(folder, tmp_path, alone):
    """Batches of 7: shares of 4 and 3, in chunks of 3 and 1, and of 3."""
    command = [*TORCHRUN, TRAIN, *arguments(folder, tmp_path, *EPOCHS, "--cache-chunk", "3")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path, alone)
    assert done.stdout.count("samples to train on") == 1
    assert {path.name for path in tmp_path.iterdir()} == set(train.RESULTS)


def _run_on_rank(folder: Path, out: Path, more: tuple[str, ...], stop_after: int) -> int:
    """With Ctrl-C on the last rank alone."""
    rank, size = dist.get_rank(), dist.get_world_size()
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))  # as torchrun does
    with ctrl_c_after(stop_after if rank == size - 1 else 0):
        return run(folder, out, *more)


def test_resumes_on_two_ranks_and_then_on_one(folder, tmp_path, alone, pair):
    with ctrl_c_after(2):
        assert run(folder, tmp_path, *EPOCHS) == train.INTERRUPTED
    assert pair(_run_on_rank, folder, tmp_path, (*EPOCHS, "--resume"), 4) == [train.INTERRUPTED] * 2
    assert run(folder, tmp_path, *EPOCHS, "--resume") == 0
    assert_alike(tmp_path, alone)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--data", "nowhere"), "DataError: nowhere: neither a folder"),
        (("--limit", "3"), "DataError: --batch-size: a batch of 1 cannot be shared by 2 ranks"),
        (("--resume",), "CheckpointError: --resume: there is no checkpoint"),
    ],
)
def test_an_error_ends_all_ranks(folder, tmp_path, pair, more, what):
    for found in pair(_run_on_rank, folder, tmp_path, more, 0):
        assert isinstance(found, RankError)
        assert what in str(found)


def test_ctrl_c_ends_all_ranks_and_says_how_to_go_on(folder, tmp_path):
    more = [*arguments(folder, tmp_path, "--batch-size", "21", "--epochs", "50")]
    process = subprocess.Popen([*TORCHRUN, TRAIN, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert said.count("to go on:") == 1, errors
    go_on = shlex.split(said.split("to go on:")[1])
    assert go_on == ["torchrun", "--nproc-per-node", "2", TRAIN, *more, "--resume"]
    options = parse([*more, "--resume"])
    state = checkpoint.load(tmp_path / "checkpoint.pt", settings(options))
    assert f"stopped after step {state['trainer']['step']} of 50" in said
    assert len(metrics(tmp_path)) == len(state["metrics"])
