"""Checkpoints that are either whole or not there."""

from __future__ import annotations

from pathlib import Path

import torch

from .files import write_atomically


class CheckpointError(Exception):
    """There is no checkpoint to resume, or it is of another run."""


def save(path: Path, state: dict) -> None:
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path, settings: dict) -> dict:
    """The state saved at ``path``. `CheckpointError` unless it is there and has the same ``settings``."""
    if not path.exists():
        raise CheckpointError(f"--resume: there is no checkpoint {path}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in settings.items():
        if state["settings"][name] != value:
            was = state["settings"][name]
            raise CheckpointError(f"--resume: {path} was made with {name} {was!r}, this run has {name} {value!r}")
    return state
