"""Builds uniclip_kernels._C from csrc/cpu and uniclip_kernels._cuda from csrc/cuda.

Without a C++ compiler the package installs without both, and says so; without a CUDA compiler, without the second.
Whether a GPU is present makes no difference. UNICLIP_BUILD_CUDA=0 leaves the CUDA kernels out, 1 makes it an error if
they cannot be built. The CUDA compiler is that of CUDA_HOME, of the pip packages that `CUDA_PACKAGES` names, or nvcc on
the PATH.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
CUDA_ARCHITECTURES = (80, 90, 100, 120)
CUDA_PACKAGES = "nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl"
# Not fast-math: only what lets vector loops be made, with results unchanged.
CXX_FLAGS = ["-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]


def compiler() -> str | None:
    return next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)


def files(folder: str, *suffixes: str) -> list[str]:
    found = (p.relative_to(ROOT) for s in suffixes for p in (ROOT / folder).rglob(f"*.{s}"))
    return sorted(str(p) for p in found)


def extension(name: str, sources: list[str], depends: list[str], macros: dict[str, str], **options):
    import pybind11
    import torch
    from torch.utils.cpp_extension import CppExtension

    macros = {"UNICLIP_TORCH_VERSION": f'"{torch.__version__}"'} | macros
    return CppExtension(
        f"uniclip_kernels.{name}",
        sources,
        depends=depends,
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=list(macros.items()),
        extra_compile_args=CXX_FLAGS,
        **options,
    )


def cpu_extension(cxx: str):
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    sources = ["csrc/module.cpp", *files("csrc/cpu", "cpp")]
    return extension("_C", sources, files("csrc/cpu", "h", "inc"), {"UNICLIP_COMPILER": f'"{version}"'})


class NoCUDAError(Exception):
    """Why the CUDA kernels cannot be built."""


class CUDAToolkit:
    """nvcc, and the runtime library to link with, which torch loads too."""

    def __init__(self) -> None:
        import torch

        if torch.version.cuda is None:
            raise NoCUDAError(f"torch {torch.__version__} was built without CUDA")
        major = torch.version.cuda.split(".")[0]
        homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
        spec = importlib.util.find_spec("nvidia")
        homes += [Path(p) / f"cu{major}" for p in (spec.submodule_search_locations if spec else [])]
        on_path = [p for p in (shutil.which("nvcc"),) if p]
        compilers = [str(h / "bin" / "nvcc") for h in homes if (h / "bin" / "nvcc").exists()] + on_path
        if not compilers:
            packages = " ".join(f"'{p}=={torch.version.cuda}.*'" for p in CUDA_PACKAGES.split())
            raise NoCUDAError(f"no nvcc of CUDA {major} found; set CUDA_HOME, or pip install {packages}")
        self.nvcc = compilers[0]
        text = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = re.search(r"release (\d+\.\d+)", text)[1]
        if self.version.split(".")[0] != major:
            raise NoCUDAError(
                f"{self.nvcc} is of CUDA {self.version}, but torch {torch.__version__} needs CUDA {major}"
            )
        homes.append(Path(self.nvcc).resolve().parent.parent)
        candidates = [
            h / lib / f"libcudart.so{s}" for h in homes for lib in ("lib64", "lib") for s in (f".{major}", "")
        ]
        self.runtime = next((str(p) for p in candidates if p.exists()), None)
        if self.runtime is None:
            raise NoCUDAError(f"no libcudart.so.{major} found beside {self.nvcc}; pip install nvidia-cuda-runtime")

    def compile(self, sources: list[str], folder: Path) -> list[str]:
        """Objects with machine code for every architecture, and PTX of the last one for those to come."""
        folder.mkdir(parents=True, exist_ok=True)
        targets = [f"arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
        targets.append(f"arch=compute_{CUDA_ARCHITECTURES[-1]},code=compute_{CUDA_ARCHITECTURES[-1]}")
        flags = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC", *(x for t in targets for x in ("-gencode", t))]

        def one(source: str) -> str:
            target = str(folder / f"{Path(source).stem}.o")
            subprocess.run([self.nvcc, *flags, "-I", str(ROOT / "csrc/cuda"), "-c", source, "-o", target], check=True)
            return target

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            return list(pool.map(one, sources))


def cuda_extension(toolkit: CUDAToolkit):
    macros = {
        "UNICLIP_CUDA_ARCHITECTURES": ",".join(map(str, CUDA_ARCHITECTURES)),
        "UNICLIP_CUDA_VERSION": f'"{toolkit.version}"',
    }
    sources = files("csrc/cuda", "cpp")
    return extension("_cuda", sources, files("csrc/cuda", "h", "cuh", "cu"), macros, extra_objects=[toolkit.runtime])


def find_cuda() -> CUDAToolkit | None:
    wanted = os.environ.get("UNICLIP_BUILD_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"UNICLIP_BUILD_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    try:
        return CUDAToolkit()
    except NoCUDAError as reason:
        if wanted == "1":
            raise SystemExit(f"uniclip-kernels: UNICLIP_BUILD_CUDA=1, but {reason}") from None
        print(f"uniclip-kernels: {reason}, so the `cuda` backend is left out", file=sys.stderr)
        return None


def build() -> dict:
    cxx = compiler()
    if cxx is None:
        message = "no C++ compiler found"
        if os.environ.get("UNICLIP_BUILD_CUDA") == "1":
            raise SystemExit(f"uniclip-kernels: UNICLIP_BUILD_CUDA=1, but {message}")
        print(f"uniclip-kernels: {message}, so the `cpu` and `cuda` backends are left out", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension

    cuda = find_cuda()

    class Build(BuildExtension):
        def build_extension(self, ext) -> None:
            if ext.name.endswith("._cuda"):
                ext.extra_objects += cuda.compile(files("csrc/cuda", "cu"), Path(self.build_temp) / "cuda")
            super().build_extension(ext)

    return {
        "ext_modules": [cpu_extension(cxx)] + ([cuda_extension(cuda)] if cuda else []),
        "cmdclass": {"build_ext": Build.with_options(no_python_abi_suffix=False)},
    }


setup(**build())
