"""Checkpoints that are either whole or not there."""

from __future__ import annotations

from pathlib import Path

import torch

from .files import write_atomically


class CheckpointError(Exception):
    """There is no checkpoint to resume, or it is broken, or of another run."""


def save(path: Path, settings: dict, state: dict) -> None:
    write_atomically(path, lambda file: torch.save({"settings": settings, "state": state}, file))


def load(path: Path, settings: dict) -> dict:
    """The state saved at ``path``. `CheckpointError` unless it is there, whole, and has the same ``settings``."""
    if not path.exists():
        raise CheckpointError(f"--resume: there is no checkpoint {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        then, state = saved["settings"], saved["state"]
    except Exception as error:  # of many kinds, depending on which bytes are missing or wrong
        raise CheckpointError(f"--resume: {path} is no checkpoint of this program, or damaged") from error
    for name, value in settings.items():
        if then.get(name) != value:
            raise CheckpointError(
                f"--resume: {path} was made with {name} {then.get(name)!r}, this run has {name} {value!r}"
            )
    return state
