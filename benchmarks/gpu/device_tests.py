"""The tests that run on a device, by pytest if there is one, by many processes if it can."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from xml.etree import ElementTree

from .environment import ROOT
from .task import Check, Context, Note, Task

PART = "tests"
WORKERS = 12


def tasks(context: Context) -> list[Task]:
    return [Task(PART, "pytest -m gpu", _tests, 30)]


def _tests(context: Context) -> Iterator[Check | Note]:
    if importlib.util.find_spec("pytest") is None:
        yield Note("left out: pytest is not installed")
        return
    outcome = context.out / "tests.xml"
    outcome.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "tests/test_gpu.py", f"--junitxml={outcome}"]
    workers = min(WORKERS, len(os.sched_getaffinity(0)) - 1)
    if workers > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(workers), "--dist", "worksteal"]
    variables = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TORCHDYNAMO_DISABLE")
    }
    if context.dry_run:
        variables["UNICLIP_GPU_DRY_RUN"] = "1"
    done = subprocess.run(command, cwd=ROOT, env=variables)
    if not outcome.exists():
        raise RuntimeError(f"pytest ended with status {done.returncode}; the log says why")
    cases = list(ElementTree.parse(outcome).iter("testcase"))
    bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    yield Check("pytest -m gpu", "", len(cases) - len(bad) - skipped, skipped, tuple(bad))
    if done.returncode and not bad:
        raise RuntimeError(f"pytest ended with status {done.returncode}; the log says why")
