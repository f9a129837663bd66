"""Runs of the example in this process, and what they left behind."""

from __future__ import annotations

import json
from pathlib import Path

import train
from uniclip.options import parse

MEASURED_ANEW = {"seconds_encoders", "seconds_loss", "seconds_optimizer", "peak_memory_bytes"}


def run(folder: Path, out: Path, *more: str) -> int:
    arguments = ["--data", str(folder), "--out", str(out), "--device", "cpu", "--batch-size", "7", *more]
    return train.run(parse(arguments))


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def numbers(out: Path) -> list[dict]:
    """The metrics, but for those that are measured anew in each run."""
    return [{name: value for name, value in row.items() if name not in MEASURED_ANEW} for row in metrics(out)]
