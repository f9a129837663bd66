"""Builds uniclip_kernels._C from csrc. Without a C++ compiler the package installs without it, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def compiler() -> str | None:
    return next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)


def extension(cxx: str):
    import pybind11
    import torch
    from torch.utils.cpp_extension import CppExtension

    sources = sorted(p.relative_to(ROOT) for p in (ROOT / "csrc").rglob("*.cpp"))
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return CppExtension(
        "uniclip_kernels._C",
        [str(p) for p in sources],
        depends=[str(p.relative_to(ROOT)) for suffix in ("h", "inc") for p in (ROOT / "csrc").rglob(f"*.{suffix}")],
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=[("UNICLIP_COMPILER", f'"{version}"'), ("UNICLIP_TORCH_VERSION", f'"{torch.__version__}"')],
        # Not fast-math: only what lets vector loops be made, with results unchanged.
        extra_compile_args=["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"],
    )


def build() -> dict:
    cxx = compiler()
    if cxx is None:
        print("uniclip-kernels: no C++ compiler found, so the `cpu` backend is left out", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension

    return {
        "ext_modules": [extension(cxx)],
        "cmdclass": {"build_ext": BuildExtension.with_options(no_python_abi_suffix=False)},
    }


setup(**build())
