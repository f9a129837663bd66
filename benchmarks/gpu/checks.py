"""Values and gradients over the grid of tests/objective_cases.py, on the device, by many processes side by side."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

from tests.evaluate import assert_matches, evaluate
from tests.objective_cases import BY_NAME, GRID
from uniclip_kernels import backends

from .task import Check, Context, Note, Task

PART = "checks"
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
WORKERS = 15  # each holds half a gigabyte on the device


def tasks(context: Context) -> list[Task]:
    names = ("cpu", "reference") if context.dry_run else ("triton", "cuda")
    return [
        Task(PART, name, functools.partial(_grid, name), 15, needs_build=name != "triton", backend=name)
        for name in names
    ]


def _grid(backend: str, context: Context) -> Iterator[Check | Note]:
    names = [case.name for case in GRID[:: 16 if context.dry_run else 1]]
    workers = max(1, min(WORKERS, len(os.sched_getaffinity(0)) - 1))
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        reason = pool.submit(_unusable, backend).result()  # asking for a device here would spoil it for the pool
        if reason is not None:
            yield Note(f"the {backend} backend was left out: {reason}")
            return
        found = {
            dtype: [pool.submit(_failure, backend, name, dtype, context.device.tensors) for name in names]
            for dtype in DTYPES
        }
        for dtype, futures in found.items():
            failures = tuple(filter(None, (future.result() for future in futures)))
            yield Check(
                f"{backend} backend, grid", str(dtype).removeprefix("torch."), len(names) - len(failures), 0, failures
            )


def _unusable(backend: str) -> str | None:
    return backends()[backend]


def _failure(backend: str, name: str, dtype: torch.dtype, device: str) -> str | None:
    try:
        assert_matches(evaluate(BY_NAME[name], backend, dtype, device), BY_NAME[name], dtype)
    except Exception as error:
        return f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None
