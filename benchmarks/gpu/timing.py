"""Rows of steps that are not whole losses: products, copies, single kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..measure import repeat_interleaved
from ..providers import Step
from ..rows import Row
from .task import Context


def rows(context: Context, steps: dict[str, Step], seconds: float, fields: dict[str, dict]) -> Iterator[Row]:
    """One for each step, with its ``fields``, which have been checked; they take turns for that long."""
    first = {name: context.device.timed(step)[0] for name, step in steps.items()}
    context.device.clock_mhz()  # forgets the first runs
    times = repeat_interleaved(steps, first, context.device.timed, seconds)
    clock = context.device.clock_mhz()
    for name, taken in times.items():
        p20, p50, p80 = np.quantile(taken, (0.2, 0.5, 0.8)).tolist()
        yield context.row(p20=p20, p50=p50, p80=p80, repetitions=len(taken), clock_mhz=clock, **fields[name])
