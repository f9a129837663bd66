"""The devices that steps run on: their clock, their peak memory, and what they are called."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import platform
import statistics
import time
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch import Tensor

from .clock import sm_clock_mhz
from .measure import check_on_few
from .problems import make_batch
from .providers import Provider, Step


class Device(ABC):
    name: str  # in rows and names of files
    tensors: str  # what PyTorch calls it
    has_triton = False
    fast = False  # enough for the right answer to large problems

    @abstractmethod
    def timed(self, step: Step) -> tuple[float, list[Tensor]]:
        """Seconds of one step, until the device is done with it, and what it gave."""

    @abstractmethod
    def extra_memory(self, provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype) -> int:
        """Peak bytes of one step beyond what was there before it (inputs, PyTorch itself), after a check on few samples.

        Raises WrongAnswerError, and MemoryError or torch.OutOfMemoryError.
        """

    @abstractmethod
    def available_memory(self) -> int:
        """Bytes that are free."""

    @abstractmethod
    def total_memory(self) -> int:
        """Bytes that it has."""

    @abstractmethod
    def machine(self) -> str:
        """What the figures were measured on."""

    def clock_mhz(self) -> int | None:
        """The median over the steps timed since it was last asked for; None where no clock is read."""
        return None


class CPU(Device):
    name = tensors = "cpu"

    def timed(self, step: Step) -> tuple[float, list[Tensor]]:
        begin = time.perf_counter()
        result = step()
        return time.perf_counter() - begin, result

    def extra_memory(self, *args) -> int:
        """In a fresh process (Linux), in which no allocator has memory left over from before."""
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                return pool.submit(_extra_memory_here, *args).result()
            except BrokenProcessPool:
                raise MemoryError("the process was killed") from None

    def available_memory(self) -> int:
        return _in_bytes("/proc/meminfo", "MemAvailable")

    def total_memory(self) -> int:
        return _in_bytes("/proc/meminfo", "MemTotal")

    def cores(self) -> int:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def machine(self) -> str:
        vectors, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
        return f"{_cpu_model()} ({vectors}{_bfloat16_products()}), {self.cores()} cores, {threads} threads"


class CUDA(Device):
    """An NVIDIA or AMD GPU; ``runtime`` is torch.cuda, or what stands in for it in a dry run."""

    name = tensors = "cuda"
    has_triton = fast = True

    def __init__(self, runtime=torch.cuda) -> None:
        self.runtime = runtime
        self.clocks: list[int] = []

    def timed(self, step: Step) -> tuple[float, list[Tensor]]:
        start, end = (self.runtime.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = step()
        end.record()
        self._read_clock()  # while the device is at work
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result

    def extra_memory(self, provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype) -> int:
        self.runtime.empty_cache()
        check_on_few(provider, objective, n, d, dtype, self.tensors)
        batch = make_batch(objective, n, d, dtype, self.tensors)
        unprepared = self.runtime.memory_allocated()
        step = provider.prepare(batch)
        step()  # libraries take their workspaces
        self.runtime.synchronize()
        self.runtime.reset_peak_memory_stats()
        before = unprepared if provider.keeps_memory else self.runtime.memory_allocated()
        step()
        self.runtime.synchronize()
        return self.runtime.max_memory_allocated() - before

    def available_memory(self) -> int:
        self.runtime.empty_cache()
        return self.runtime.mem_get_info()[0]

    def total_memory(self) -> int:
        return self.runtime.get_device_properties(0).total_memory

    def machine(self) -> str:
        properties = self.runtime.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"

    def clock_mhz(self) -> int | None:
        median = int(statistics.median(self.clocks)) if self.clocks else None
        self.clocks.clear()
        return median

    def _read_clock(self) -> None:
        uuid = getattr(self.runtime.get_device_properties(0), "uuid", None)
        reading = None if uuid is None else sm_clock_mhz(str(uuid))
        if reading is not None:
            self.clocks.append(reading)


def _extra_memory_here(provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype) -> int:
    check_on_few(provider, objective, n, d, dtype, "cpu")  # also loads the libraries and starts their threads
    return peak_memory(provider.prepare(make_batch(objective, n, d, dtype)))


def peak_memory(step: Step) -> int:
    """Bytes of this process (Linux) at the peak of a step, beyond those before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _in_bytes("/proc/self/status", "VmRSS")
    step()
    return _in_bytes("/proc/self/status", "VmHWM") - before


def _in_bytes(file: str, field: str) -> int:
    """A field of a file of the kernel's that is in KiB."""
    return next(
        int(line.split()[1]) * 1024 for line in Path(file).read_text().splitlines() if line.startswith(f"{field}:")
    )


def _bfloat16_products() -> str:
    """What the processor has for them; names of models do not tell."""
    has = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    found = [name for name, key in (("AMX", "amx_bf16"), ("AVX512-BF16", "avx512_bf16")) if has.get(key)]
    return f", {found[0]}" if found else ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
