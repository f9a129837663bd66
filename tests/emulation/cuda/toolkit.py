"""The CUDA compiler and headers, from where setup.py takes them: CUDA_HOME, NVIDIA's pip packages, or nvcc on the PATH."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch

_PACKAGE = "cuda-toolkit[nvcc,cccl]"


def nvcc() -> str:
    """The compiler, as a command."""
    found = (str(home / "bin" / "nvcc") for home in _homes() if os.access(home / "bin" / "nvcc", os.X_OK))
    command = next(found, shutil.which("nvcc"))
    if command is None:
        raise _missing("nvcc")
    return command


def include_flags() -> list[str]:
    """Flags with which a C++ compiler finds cuda_bf16.h, cuda_fp16.h and what these include."""
    folders = [home / "include" for home in _homes() if (home / "include").is_dir()]
    for header in ("cuda_bf16.h", "crt/host_defines.h"):
        if not any((folder / header).exists() for folder in folders):
            raise _missing(header)
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def _homes() -> list[Path]:
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    packages = importlib.util.find_spec("nvidia")
    major = (torch.version.cuda or "").split(".")[0]
    return homes + [Path(p) / f"cu{major}" for p in (packages.submodule_search_locations if packages else [])]


def _missing(what: str) -> FileNotFoundError:
    package = f"'{_PACKAGE}=={torch.version.cuda}.*'"
    return FileNotFoundError(f"no {what} of the CUDA toolkit found; set CUDA_HOME, or pip install {package}")
