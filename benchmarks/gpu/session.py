"""The parts of `make gpu` in an environment that is ready: task after task by value, until the time is up.

Results are written as soon as they are there, and what was not reached is listed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from ..devices import CUDA
from ..dry_run import DryRun
from ..rows import Row
from . import ceilings, checks, device_tests, end_to_end, kernels, product, profiling, sizes
from .environment import ROOT, build_in_place
from .report import Report
from .task import Check, Context, Failure, Note, Result, Task, results

_MODULES = (checks, ceilings, end_to_end, product, kernels, device_tests, sizes, profiling)
PARTS = {module.PART: module.tasks for module in _MODULES}


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 if something was wrong or failed; what there was no time for is neither."""
    options = _parse(arguments)
    context = Context(
        device=DryRun() if options.dry_run else CUDA(),
        dry_run=options.dry_run,
        run=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        out=options.out,
        deadline=options.deadline,
        arguments=options.arguments,
    )
    report = Report(options.out)
    build = _start_build(options.dry_run) if options.build else None
    todo = [task for part in options.parts.split(",") for task in PARTS[part](context)]
    while todo:
        task = _next(todo, build, context)
        todo.remove(task)
        if context.seconds_left() < task.seconds:
            _say(context, f"no time for {task}")
            report.not_reached(task)
        else:
            do(task, context, report)
    if build is not None:
        _end_build(build, report)
    print(report.markdown(), f"written to {options.out}", sep="\n", flush=True)
    return int(report.failed)


def do(task: Task, context: Context, report: Report) -> None:
    """Once, and once more without each of our providers that ends it by a crash of its own."""
    begin = time.time()
    _say(context, str(task))
    excluded: dict[str, str] = {}
    again = True
    try:
        while again:
            again = False
            for result in results(task, replace(context, unusable=context.unusable | excluded)):
                report.add(task, result)
                _show(result)
                if task.backend is not None and (why := _distrust(result)):
                    context.unusable.setdefault(task.backend, why)
                if isinstance(result, Failure) and result.provider not in (None, *excluded):
                    excluded[result.provider] = f"failed: {result.text}"
                    again = True
    except TimeoutError:
        _say(context, f"out of time in {task}")
        if context.seconds_left() > 0:
            why = f"it did not end within {time.time() - begin:.0f} s"
            report.add(task, Failure(why))
            if task.backend is not None:
                context.unusable.setdefault(task.backend, f"its checks: {why}")
        else:
            report.not_reached(task)
    print(f"    {time.time() - begin:.1f} s", flush=True)


def _distrust(result: Result | Failure) -> str:
    """Why the backend that a task checks is not to be measured after such a result; empty if it may be."""
    if isinstance(result, Note):  # it was left out
        return result.text
    wrong = isinstance(result, Failure) or (isinstance(result, Check) and result.failures)
    return "its checks failed on this device" if wrong else ""


def _next(todo: list[Task], build: subprocess.Popen | None, context: Context) -> Task:
    """The first that need not wait for the build; the wait is over when nothing else is left to do."""
    if build is not None and build.poll() is None:
        ready = next((task for task in todo if not task.needs_build), None)
        if ready is not None:
            return ready
        _say(context, "waiting for the build")
        left = context.seconds_left()
        try:
            build.wait(None if left == float("inf") else max(left, 0))
        except subprocess.TimeoutExpired:
            _say(context, "out of time in the build")
    return todo[0]


def _start_build(dry_run: bool) -> subprocess.Popen | None:
    step = build_in_place()
    print(f"\n{step}", flush=True)
    if dry_run:
        return None
    return subprocess.Popen(step.command, cwd=ROOT, env=os.environ | step.environment, start_new_session=True)


def _end_build(build: subprocess.Popen, report: Report) -> None:
    if build.poll() is None:
        os.killpg(build.pid, signal.SIGKILL)
    elif build.returncode:
        report.failures.append(f"build: it ended with status {build.returncode}; the log says why")
        report.write()


def _say(context: Context, what: str) -> None:
    left = context.seconds_left()
    clock = "" if left == float("inf") else f"[{max(int(left), 0) // 60}:{max(int(left), 0) % 60:02d} left] "
    print(f"{clock}{what}", flush=True)


def _show(result: Result | Failure) -> None:
    if isinstance(result, Row):
        figure = result.note if result.p50 is None else f"{result.p50 * 1e3:.4g} ms"
        if result.p50 is not None and result.work:
            figure += f", {result.work / result.p50 / 1e12:.4g}e12/s"
        text = f"{result.objective} {result.provider} {result.mode} n={result.n} d={result.d} {result.dtype}: {figure}"
    elif isinstance(result, Check):
        text = f"{result.what}, {result.dtype}: {result.passed} passed, {len(result.failures)} failed"
        text += "".join(f"\n      {failure}" for failure in result.failures)
    else:
        text = f"{'FAILED: ' * isinstance(result, Failure)}{result.text}"
    print(f"    {text}", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.session", description=__doc__)
    parser.add_argument("--parts", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--deadline", type=float, default=float("inf"), help="as time.time() counts")
    parser.add_argument("--build", action="store_true", help="the extensions in place, while what needs none is done")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("arguments", nargs="*", help="for benchmarks.run")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
