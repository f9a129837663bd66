"""All there is to do on a machine with a GPU: build for it, test on it, measure on it. `make gpu` runs this.

It comes before anything is installed, so it needs Python alone. What it doesn't know it hands to benchmarks.run:
`make gpu ARGS="--sizes 4096 --seconds 5"`. `make gpu ARGS=--dry-run` takes the same steps without a GPU: nothing is
installed, what can be tested is tested on the CPU, and the benchmarks run to their report with a clock that measures nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
RIVALS = ("inf-cl==1.2.1", "siglip-kernel==0.1.2")


@dataclass(frozen=True)
class Step:
    title: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    required: bool = True  # else the steps after it run all the same


def steps(python: str, dry_run: bool, arguments: list[str]) -> list[Step]:
    """``arguments`` are for benchmarks.run."""
    # The extension anew, with the CUDA kernels if a CUDA compiler is found: an empty variable leaves that to setup.py.
    make = ["make", "--assume-new=setup.py", "install"]
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", *RIVALS]
    pytest = [python, "-m", "pytest", "-m", "gpu", "-rs"]
    run = [python, "-m", "benchmarks.run"]
    if dry_run:
        make.append("--dry-run")
        tiny = ["--device", "dry-run", "--sizes", "24", "--dim", "16", "--seconds", "0"]
        return [
            Step("build", make),
            Step("test on the device", pytest, {"UNICLIP_GPU_DRY_RUN": "1"}),
            Step("measure", [*run, *tiny, *arguments], {"TORCHDYNAMO_DISABLE": "1"}),
        ]
    return [
        Step("build", make, {"UNICLIP_BUILD_CUDA": ""}),
        Step("test on the device", pytest),
        Step("install other kernels to compare with", pip, required=False),
        Step("measure", [*run, "--device", "cuda", *arguments]),
    ]


def take(todo: list[Step]) -> int:
    """Step after step, each in the repository's folder, until a required one fails; its exit status."""
    for step in todo:
        assignments = [f"{name}={value}" for name, value in step.environment.items()]
        print(f"\n=== {step.title}: {shlex.join([*assignments, *step.command])}", flush=True)
        status = subprocess.run(step.command, cwd=ROOT, env=os.environ | step.environment).returncode
        if status and step.required:
            print(f"make gpu: failed to {step.title}; nothing after that was done", file=sys.stderr)
            return status
    return 0


def has_gpu() -> bool:
    """Whether NVIDIA's driver counts one, or AMD's is loaded."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return Path("/dev/kfd").exists()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__, allow_abbrev=False)
    parser.add_argument("--python", default=sys.executable, help="of the environment that `make install` makes")
    parser.add_argument("--dry-run", action="store_true", help="take the steps without a GPU and measure nothing")
    options, others = parser.parse_known_args(arguments)
    if not options.dry_run and not has_gpu():
        print(
            "make gpu: there is no GPU here, or no driver for it. `make gpu ARGS=--dry-run` goes through the steps without.",
            file=sys.stderr,
        )
        return 1
    return take(steps(options.python, options.dry_run, others))


if __name__ == "__main__":
    sys.exit(main())
