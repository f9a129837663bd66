"""A stop changes nothing: checkpoints, Ctrl-C, and --resume to the very same numbers."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train
from PIL import Image
from uniclip import checkpoint, files

from tests.examples.conftest import EXAMPLES
from tests.examples.runs import MEASURED_ANEW, SMALL, ctrl_c_after, metrics, numbers, run


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    assert run(folder, out, "--epochs", "2") == 0
    return out


def assert_same(first, second, where: str = "") -> None:
    """Bit for bit, apart from what is measured anew."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for name in first.keys() - MEASURED_ANEW:
            assert_same(first[name], second[name], f"{where}/{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


@pytest.mark.parametrize("stop_after", [0, 2, 3])
def test_resumed_run_is_bit_identical(folder, tmp_path, uninterrupted, stop_after, monkeypatch, capsys):
    """Stopped by Ctrl-C before the first step, in the middle of an epoch of three steps, and at its end."""
    if stop_after == 0:
        press, real = functools.partial(signal.raise_signal, signal.SIGINT), train.progress
        monkeypatch.setattr(train, "progress", lambda *a: (press(), real(*a))[1])
    with ctrl_c_after(stop_after):
        assert run(folder, tmp_path, "--epochs", "2") == train.INTERRUPTED
    assert f"stopped after step {stop_after} of 6" in capsys.readouterr().out
    monkeypatch.undo()
    torch.manual_seed(12345)  # what the process did before must not matter
    assert run(folder, tmp_path, "--epochs", "2", "--resume") == 0
    assert len(numbers(tmp_path)) == 2
    assert numbers(tmp_path) == numbers(uninterrupted)
    states = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, uninterrupted)]
    assert_same(*states)
    # Once more at the end: nothing is left to do, and nothing changes.
    assert run(folder, tmp_path, "--epochs", "2", "--resume") == 0
    assert numbers(tmp_path) == numbers(uninterrupted)


def test_resume_refuses_what_would_give_other_numbers(folder, tmp_path, uninterrupted):
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint"):
        run(folder, tmp_path, "--epochs", "2", "--resume")
    with pytest.raises(checkpoint.CheckpointError, match="was made with epochs 2, this run has epochs 4"):
        run(folder, uninterrupted, "--epochs", "4", "--resume")
    with pytest.raises(checkpoint.CheckpointError, match="was made with width 16, this run has width 32"):
        run(folder, uninterrupted, "--epochs", "2", "--resume", "--width", "32")


@pytest.mark.parametrize("change", ["caption", "picture"])
def test_resume_refuses_other_data(folder, tmp_path, change):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folder, data)
    assert run(data, out, "--epochs", "1") == 0
    assert run(data, out, "--epochs", "1", "--resume") == 0
    if change == "caption":
        table = data / "captions.csv"
        table.write_text(table.read_text().replace("number 3", "number three"))
    else:
        with Image.open(data / "pictures" / "3.png") as image:
            changed = image.rotate(90)
        changed.save(data / "pictures" / "3.png")
    with pytest.raises(checkpoint.CheckpointError, match="the pictures or texts are not those"):
        run(data, out, "--epochs", "1", "--resume")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\0" * 5000, "half", "other"])
def test_damaged_checkpoint(folder, tmp_path, uninterrupted, content):
    saved = tmp_path / "checkpoint.pt"
    if content == "half":
        whole = (uninterrupted / "checkpoint.pt").read_bytes()
        saved.write_bytes(whole[: len(whole) // 2])
    elif content == "other":
        torch.save({"weights": torch.ones(3)}, saved)
    else:
        saved.write_bytes(content)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"checkpoint\.pt is no checkpoint of this program, or damaged"
    ):
        run(folder, tmp_path, "--epochs", "2", "--resume")


def test_interrupted_process_says_how_to_go_on(folder, tmp_path):
    out = tmp_path / "with space"
    arguments = ["--data", folder, "--out", out, "--batch-size", "21", "--epochs", "5", "--device", "cpu", *SMALL]
    command = [sys.executable, str(EXAMPLES / "train.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    go_on = shlex.split(said.split("to go on:")[1])
    assert go_on == [*command, "--resume"]
    done = len(metrics(out))
    assert 0 < done < 5
    subprocess.run(go_on, check=True, capture_output=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": "1"})
    assert [row["epoch"] for row in metrics(out)] == list(range(1, 6))


def test_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
