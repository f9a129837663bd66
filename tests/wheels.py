"""Wheels as their users get them: built from a clean tree, installed into a folder, tried where no source is near."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "csrc", "uniclip_kernels")


def copy_sources(target: Path) -> Path:
    """A clean tree to build in."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(source, target)
    return target


def copy_tests(target: Path) -> Path:
    """A folder to run tests in, without the package."""
    shutil.copytree(ROOT / "tests", target / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")} | environment
    done = subprocess.run(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(python: str | Path, folder: Path, **environment: str) -> Path:
    """The wheel, built beside that Python's torch."""
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel")
    run(python, "-m", "pip", "wheel", *options, copy_sources(folder / "tree"), cwd=folder, **environment)
    (wheel,) = (folder / "wheel").iterdir()
    return wheel


def install(python: str | Path, wheel: Path, target: Path) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel, cwd=target.parent)
