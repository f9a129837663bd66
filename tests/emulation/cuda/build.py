"""Builds the kernels of csrc/cuda for tests: by the C++ compiler over the emulation, and by nvcc into PTX and cubins.

What is built is kept in build/cuda-emulation, named by a hash of all that goes into it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from . import toolkit

EMULATION = Path(__file__).resolve().parent
ROOT = EMULATION.parents[2]
KERNELS = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "cuda-emulation"
TORCH = Path(torch.__file__).parent
LIBRARY = "uniclip_emulated"


def library() -> Path:
    """The launchers, executed on the host and registered with torch for CPU tensors in the library ``LIBRARY``."""
    register = [f"-I{TORCH / 'include'}", f"-DUNICLIP_LIBRARY={LIBRARY}", "-DUNICLIP_DEVICE=CPU"]
    jobs = [(source, []) for source in (*_sources(KERNELS), EMULATION / "control.cpp")]
    jobs.append((KERNELS / "register.cpp", register))
    # Of libtorch_cuda, and never called: no tensor is on a GPU.
    link = [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-Wl,--defsym=aoti_torch_get_current_cuda_stream=0"]
    flags = ["-O2", "-g1", "-fPIC", *_emulated(KERNELS)]
    return _cached("emulated.so", flags, lambda target: _compile_and_link(jobs, flags, target, link))


def driver(sanitizer: str | None = None, fault: tuple[str, str, str] | None = None) -> Path:
    """The program of driver.cpp. ``fault``: (file, text, replacement), which must fit once, planted in a copy of the kernels."""
    # What AddressSanitizer inserts takes the optimiser longer than it saves.
    flags = ["-O0" if sanitizer and "address" in sanitizer else "-O1", "-g1"]
    flags += [f"-fsanitize={sanitizer}"] if sanitizer else []
    parts = EMULATION / "control.cpp", EMULATION / "driver.cpp"

    def build(target: Path) -> None:
        kernels = KERNELS
        if fault is not None:
            kernels = target.parent / f"{target.name}.kernels"
            shutil.copytree(KERNELS, kernels)
            _plant(kernels / fault[0], *fault[1:])
        unit = "".join(f'#include "{p}"\n' for p in (*_sources(kernels), *parts))
        _run(["g++", *flags, *_emulated(kernels), "-x", "c++", "-", "-o", str(target)], input=unit)

    return _cached("driver", [*flags, *(fault or ())], build)


@functools.cache
def ptx(architecture: int) -> dict[str, str]:
    """PTX of each source that nvcc emits for an architecture, by file name."""
    flags = ["-std=c++20", "-O3", "-lineinfo", f"-arch=sm_{architecture}", "-ptx"]
    return {
        p.name: _cached(f"{p.stem}.ptx", [*flags, p.name], functools.partial(_nvcc, p, flags)).read_text()
        for p in _sources(KERNELS)
    }


def cubin(source: str, architecture: int) -> Path:
    """Machine code of one source for an architecture, built as setup.py does."""
    flags = ["-std=c++20", "-O3", "-cubin", f"-arch=sm_{architecture}"]
    return _cached(f"{source}.cubin", [*flags, source], functools.partial(_nvcc, KERNELS / source, flags))


def _nvcc(source: Path, flags: Sequence[str], target: Path) -> None:
    _run([toolkit.nvcc(), *flags, str(source), "-o", str(target)])


def _sources(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cu"))


def _emulated(kernels: Path) -> list[str]:
    """Flags for sources that include launch.cuh."""
    return ["-std=c++20", *toolkit.include_flags(), f"-I{kernels}", f"-I{EMULATION}"]


def _compile_and_link(jobs: list[tuple[Path, list[str]]], flags: list[str], target: Path, link: list[str]) -> None:
    def compile_one(job: tuple[Path, list[str]]) -> str:
        source, more = job
        out = f"{target}.{source.name}.o"
        _run(["g++", *flags, *more, "-x", "c++", "-c", str(source), "-o", out])
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    _run(["g++", "-shared", *objects, *link, "-o", str(target)])
    for path in objects:
        Path(path).unlink()


def _plant(path: Path, text: str, replacement: str) -> None:
    source = path.read_text()
    if source.count(text) != 1:
        raise ValueError(f"the text to replace must be in {path.name} once, it is there {source.count(text)} times")
    path.write_text(source.replace(text, replacement))


def _cached(name: str, parameters: Sequence[str], build) -> Path:
    """``build(path)``, unless that was done before from the same sources with the same parameters."""
    digest = hashlib.sha256("\0".join([torch.__version__, *parameters]).encode())
    for path in sorted([*filter(Path.is_file, KERNELS.iterdir()), *EMULATION.glob("*.h"), *EMULATION.glob("*.cpp")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    target = CACHE / f"{digest.hexdigest()[:16]}-{name}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side build it once
        if not target.exists():
            unfinished = target.with_name(f"{target.name}.unfinished")
            shutil.rmtree(f"{unfinished}.kernels", ignore_errors=True)
            build(unfinished)
            unfinished.rename(target)
    return target


def _run(command: list[str], **options) -> None:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
