"""Runs of the example in this process, and what they left behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import train
from uniclip.options import parse

SMALL = ("--image-size", "16", "--width", "16")
MEASURED_ANEW = {"seconds_encoders", "seconds_loss", "seconds_optimizer", "peak_memory_bytes"}


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    return ["--data", str(folder), "--out", str(out), "--device", "cpu", "--batch-size", "7", *SMALL, *more]


def run(folder: Path, out: Path, *more: str) -> int:
    return train.run(parse(arguments(folder, out, *more)))


@contextmanager
def ctrl_c_after(step: int) -> Iterator[None]:
    """A run in this is interrupted after that step."""
    train_step = train.Trainer.train_step

    def step_then_press(trainer):
        loss = train_step(trainer)
        if trainer.step == step:
            signal.raise_signal(signal.SIGINT)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", step_then_press)
        yield


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def numbers(out: Path) -> list[dict]:
    """The metrics, but for those that are measured anew in each run."""
    return [{name: value for name, value in row.items() if name not in MEASURED_ANEW} for row in metrics(out)]
