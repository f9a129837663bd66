"""A GPU that isn't there: CPU tensors, and a clock and a memory that say nothing. It shows that the benchmarks run to the end."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from .devices import CUDA

MARK = "DRY RUN: no GPU, nothing here was measured"
_READING_MS = 1.0


class _Event:
    _clock = itertools.count()

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.reading, self.reached = None, False

    def record(self) -> None:
        self.reading = next(self._clock) * _READING_MS

    def synchronize(self) -> None:
        self.reached = True

    def elapsed_time(self, end: _Event) -> float:
        assert end.reached, "the time was asked for before the device was done"
        return end.reading - self.reading


class _Runtime:
    """The part of torch.cuda that ``CUDA`` uses."""

    Event = _Event

    def __init__(self) -> None:
        self.peak = 0

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def reset_peak_memory_stats(self) -> None:
        self.peak = 1 << 20

    def memory_allocated(self) -> int:
        return 0

    def max_memory_allocated(self) -> int:
        return self.peak

    def mem_get_info(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=MARK, total_memory=1 << 30)


class DryRun(CUDA):
    name = "dry-run"
    tensors = "cpu"

    def __init__(self) -> None:
        super().__init__(_Runtime())
