"""What has to be there before anything is measured: a GPU, the package with its extensions, other kernels to compare with.

Needs Python alone, as it comes before anything is installed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shlex
import subprocess
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RIVALS = ("inf-cl==1.2.1", "siglip-kernel==0.1.2", "memeff==0.3.1")


@dataclass(frozen=True)
class Step:
    title: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = True  # else what comes after it is done all the same

    def __str__(self) -> str:
        assignments = [f"{name}={value}" for name, value in self.environment.items()]
        return f"=== {self.title}: {shlex.join([*assignments, *self.command])}"


def has_gpu() -> bool:
    """Whether NVIDIA's driver counts one, or AMD's is loaded."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return Path("/dev/kfd").exists()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def architectures() -> list[str]:
    """Compute capabilities of NVIDIA's GPUs here, such as "90"; empty where the driver tells none."""
    try:
        driver, count, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    except OSError:
        return []
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = set()
    for index in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), index)
        major_minor = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            value = ctypes.c_int()
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            major_minor.append(str(value.value))
        found.add("".join(major_minor))
    return sorted(found)


def installation(python: str, dry_run: bool) -> list[Step]:
    """An environment of its own, from the network."""
    # The extensions anew, with the CUDA kernels if a CUDA compiler is found: an empty variable leaves that to setup.py.
    make = ["make", "--assume-new=setup.py", "install"]
    if dry_run:
        return [Step("build", [*make, "--dry-run"])]
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", *RIVALS]
    return [
        Step("build", make, {"UNICLIP_BUILD_CUDA": ""}),
        Step("install other kernels to compare with", pip, required=False),
    ]


def build_in_place() -> Step:
    """The extensions beside the sources, for the GPUs that are here alone, with the compilers that are here."""
    # Asked in a process of its own: one that has started the driver can't be forked for work on the GPU.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(architectures).result()
    only = {"UNICLIP_CUDA_ARCHITECTURES": ",".join(found)} if found else {}
    return Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], {"UNICLIP_BUILD_CUDA": "", **only})


def take(steps: list[Step]) -> int:
    """Step after step in the repository's folder, until a required one fails; its exit status."""
    for step in steps:
        print(f"\n{step}", flush=True)
        status = subprocess.run(step.command, cwd=ROOT, env=os.environ | step.environment).returncode
        if status and step.required:
            print(f"make gpu: failed to {step.title}; nothing after that was done", file=sys.stderr)
            return status
    return 0


def unpack(wheels: Path, folder: Path) -> list[str]:
    """Pure Python wheels into a folder for PYTHONPATH, without what they depend on; their names."""
    files = sorted(wheels.glob("*-none-any.whl"))
    for file in files:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    return [file.name for file in files]
