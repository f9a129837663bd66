"""Nsight Compute on the kernels of one step: how busy the second-level cache, the tensor cores and the schedulers are.

It leaves the clocks as they are. As a program it is the step that is looked at.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator

from .environment import ROOT
from .task import Context, Note, Task

PART = "profile"
KERNELS = "regex:similarity_|hopper_|gemm|nvjet|cutlass"
LAUNCHES = 16  # the forward kernels of a step, then the gradient's and the products
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "SchedulerStats")
SHOWN = (
    "Duration",
    "SM Frequency",
    "L2 Cache Throughput",
    "L1/TEX Cache Throughput",
    "DRAM Throughput",
    "Compute (SM) Throughput",
    "SM Busy",
    "Issue Slots Busy",
    "L2 Hit Rate",
)
SAMPLES, COLUMNS = 8192, 512


def tasks(context: Context) -> list[Task]:
    return [Task(PART, backend, _Profile(backend), 30) for backend in ("triton", "cuda")]


class _Profile:
    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __call__(self, context: Context) -> Iterator[Note]:
        if self.backend in context.unusable:
            yield Note(f"left out: {context.unusable[self.backend]}")
            return
        if context.dry_run or shutil.which("ncu") is None:
            yield Note("left out: a dry run" if context.dry_run else "left out: there is no ncu on the PATH")
            return
        log = context.out / f"profile_{self.backend}.csv"
        command = ["ncu", "--clock-control", "none", "--csv", "--page", "details", "--log-file", str(log), "-f"]
        command += [x for section in SECTIONS for x in ("--section", section)]
        command += ["-k", KERNELS, "-c", str(LAUNCHES), sys.executable, "-m", __spec__.name, self.backend]
        status = subprocess.run(command, cwd=ROOT).returncode
        lines = log.read_text().splitlines() if log.exists() else []
        start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
        if start is None:
            raise RuntimeError(f"ncu ended with status {status}: {' '.join(lines)[:300]}")
        kernels: dict[tuple[str, str], list[str]] = {}
        for line in csv.DictReader(lines[start:]):
            if line["Metric Name"] in SHOWN:
                figure = f"{line['Metric Name']} {line['Metric Value']} {line['Metric Unit']}"
                kernels.setdefault((line["ID"], line["Kernel Name"]), []).append(figure)
        for (_, name), figures in kernels.items():
            yield Note(f"{name[:60]}: {', '.join(figures)}")


def main(backend: str) -> None:
    import torch

    from ..problems import make_batch
    from ..providers import ours, ours_in_cuda

    step = {"triton": ours, "cuda": ours_in_cuda}[backend](
        make_batch("MP-NCE", SAMPLES, COLUMNS, torch.bfloat16, "cuda")
    )
    step()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
