"""Files that are either whole or not there, and results that are not written over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def set_aside(folder: Path, names: tuple[str, ...], place: Path) -> None:
    """Move what ``folder`` has under ``names`` to a new folder ``place``, instead of what was there before."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in names:
        if (folder / name).exists():
            (folder / name).rename(place / name)
