"""Loads the compiled extensions, and says what to do about one that is missing or does not load."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

_NEEDS = {"_C": "a C++ compiler", "_cuda": "a CUDA compiler (UNICLIP_BUILD_CUDA=1 makes it say what it lacks)"}


def load(name: str) -> ModuleType:
    """``uniclip_kernels._C`` or ``uniclip_kernels._cuda``; importing it registers its operators."""
    path = f"{__package__}.{name}"
    if importlib.util.find_spec(path) is None:
        raise ImportError(f"{path} was not built; install uniclip-kernels again from source, with {_NEEDS[name]}")
    try:
        return importlib.import_module(path)
    except ImportError as error:
        raise ImportError(
            f"{path} does not load beside torch {torch.__version__} ({error}); it needs torch 2.10 or newer, and CUDA "
            "kernels a torch of the CUDA version that they were built for. Else install uniclip-kernels again from source: "
            "pip install --no-build-isolation --force-reinstall --no-deps"
        ) from error
