"""A run writes all that it should; bad options and data end it in one line."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import train
from PIL import Image
from uniclip.objective import OBJECTIVES
from uniclip.options import parse
from uniclip.samples import DataError

from tests.examples.conftest import EXAMPLES
from tests.examples.runs import metrics, numbers, run

FIELDS = {
    "epoch",
    "step",
    "loss",
    *(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "temperature",
    "offset",
    "seconds_encoders",
    "seconds_loss",
    "seconds_optimizer",
    "peak_memory_bytes",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_runs_and_writes_everything(folder, tmp_path, objective):
    assert run(folder, tmp_path, "--objective", objective, "--epochs", "1", "--limit", "20") == 0
    (row,) = metrics(tmp_path)
    assert set(row) == FIELDS
    domains = len(OBJECTIVES[objective].domains)
    for name in ("temperature", "offset"):
        assert np.shape(row[name]) == (domains, domains)
        assert row[name] == np.transpose(row[name]).tolist()
    assert row["epoch"] == 1
    assert row["step"] == 1
    assert all(math.isfinite(row[name]) for name in FIELDS - {"temperature", "offset"})
    assert 1e8 < row["peak_memory_bytes"] < 1e11
    for name in ("curves.png", "retrieval.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 500
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_seed_decides_the_numbers(folder, tmp_path):
    for out, seed in {"a": "0", "b": "0", "c": "1"}.items():
        assert run(folder, tmp_path / out, "--epochs", "1", "--limit", "20", "--seed", seed) == 0
    first, again, other = (numbers(tmp_path / out) for out in "abc")
    assert first == again
    assert first[0]["loss"] != other[0]["loss"]


def test_new_run_sets_the_earlier_one_aside(folder, tmp_path, capsys):
    assert run(folder, tmp_path, "--epochs", "1", "--limit", "20") == 0
    results = {path.name for path in tmp_path.iterdir()}
    assert results == set(train.RESULTS)
    first = numbers(tmp_path)
    for _ in range(2):
        assert run(folder, tmp_path, "--epochs", "1", "--limit", "20", "--seed", "1") == 0
        assert f"the run that was in {tmp_path} is now in {tmp_path}/earlier" in capsys.readouterr().out
        assert {path.name for path in tmp_path.iterdir()} == results | {"earlier"}
        assert {path.name for path in (tmp_path / "earlier").iterdir()} == results
        assert numbers(tmp_path / "earlier") == first
        first = numbers(tmp_path)


def test_data_error_ends_the_process_in_one_line(tmp_path):
    (tmp_path / "captions.csv").write_text("image,caption\nnone.png,one\n")
    command = [sys.executable, str(EXAMPLES / "train.py"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == f"error: {tmp_path}/captions.csv:2: image none.png does not exist\n"
    assert not (tmp_path / "out").exists()


def test_two_pictures_a_sample_are_of_emojis_alone(folder, tmp_path):
    assert parse([]).domains == "artists"
    assert parse(["--data", str(folder)]).domains == "picture"
    with pytest.raises(DataError, match="--domains: needs 2 pictures of each sample, the data has 1"):
        run(folder, tmp_path, "--domains", "artists")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--epochs", "0"], "--epochs: must be at least 1"),
        (["--seed", "-1"], "--seed: must not be negative"),
        (["--device", "nonsense"], "--device: nonsense is not usable here"),
        (["--out", __file__], "is not a folder"),
        (["--out", ""], "'' is not a folder"),
        (["--out", f"{__file__}/below"], f"'{__file__}' is not a folder"),
        (["--batch-size", "1"], "must be at least 2, for there are no negatives otherwise, got 1"),
        (["--cache-chunk", "0"], "--cache-chunk: must be at least 1, got 0"),
        (["--device", "meta"], "meta is not usable here"),
        (["--augmentation", "-1"], "--augmentation: must be a number from 0, got -1"),
        (["--augmentation", "inf"], "--augmentation: must be a number from 0, got inf"),
        (["--objective", "other"], "--objective: invalid choice"),
    ],
)
def test_bad_option(arguments, what, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert what in capsys.readouterr().err
