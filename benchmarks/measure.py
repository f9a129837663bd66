"""The check that comes before every figure, the clock, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch
from torch import Tensor

from .problems import make_batch
from .providers import Provider, Step

#: Largest error of the loss (relative) and of gradients (relative to their largest entry) against float64.
#: A similarity of 14 in bfloat16, as competitors hold them, is off by 0.03: hence 2 and 4 of its epsilons.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1.6e-2, 3.1e-2)}
CHECKED_SAMPLES = 512  # the float64 answer needs M x M matrices
LONG_STEP = 20.0  # seconds: a step that long is run once, and needs no warm-up
MOST_ROUNDS = 200


class WrongAnswerError(RuntimeError):
    """A provider's loss or gradient is not what it should be."""


def check_on_few(provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype, device: str) -> None:
    """Against float64 on at most CHECKED_SAMPLES samples. Raises WrongAnswerError."""
    batch = make_batch(objective, min(n, CHECKED_SAMPLES), d, dtype, device)
    check(provider.prepare(batch)(), provider.expected(batch), dtype)


def check(result: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """Raises WrongAnswerError with the worst entry of the first tensor (loss, then gradients) that is too far off."""
    if len(result) != len(wanted):
        raise WrongAnswerError(f"gave {len(result)} tensors, not {len(wanted)}")
    for place, (got, want) in enumerate(zip(result, wanted, strict=True)):
        tolerance = TOLERANCE[dtype][want.dim() > 0]
        if want.shape == (2, 2):
            got, want = _fold(got), _fold(want)
        worst = int((got.double() - want.double()).abs().nan_to_num(nan=torch.inf).argmax())
        found, right = got.flatten()[worst].item(), want.flatten()[worst].item()
        error = abs(found - right) / want.abs().max().item()
        if not error <= tolerance:  # so that NaN fails
            raise WrongAnswerError(
                f"tensor {place} is {found:.7g} at {worst}, not {right:.7g}: off by {error:.1e} of the largest entry, "
                f"more than {tolerance:.0e}"
            )


def time_interleaved(
    steps: dict[str, Step],
    accept: Callable[[str, list[Tensor]], bool],
    device: str,
    seconds: float,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each step, run in turn (A B C, C A B, …), so that a slow spell of the machine meets all of them alike.

    ``accept`` judges the first result of each step; one that it turns down gets no time. That run is the warm-up too.
    ``tick`` is called after each run.
    """
    times: dict[str, list[float]] = {}
    for name, step in steps.items():
        taken, result = timed(step, device)
        if accept(name, result):
            times[name] = [taken] if taken > LONG_STEP else []
        del result
        tick()
    again = [name for name, taken in times.items() if not taken]
    order, start = random.Random(0), time.perf_counter()
    for _ in range(MOST_ROUNDS if again else 0):
        for name in order.sample(again, len(again)):
            times[name].append(timed(steps[name], device)[0])
            tick()
        if time.perf_counter() - start > seconds:
            break
    return times


def timed(step: Step, device: str) -> tuple[float, list[Tensor]]:
    """Seconds of one step, until the device is done with it, and what it gave."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        result = step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, result
    begin = time.perf_counter()
    result = step()
    return time.perf_counter() - begin, result


def extra_memory(provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype, device: str) -> int:
    """Peak bytes of one step beyond what was there before it (inputs, PyTorch itself), after a check on few samples.

    On the CPU (Linux) in a fresh process, in which no allocator has memory left over from before. Raises
    WrongAnswerError, and MemoryError if the process was killed.
    """
    if device == "cuda":
        return _extra_memory_cuda(provider, objective, n, d, dtype)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_extra_memory_cpu, provider, objective, n, d, dtype).result()
        except BrokenProcessPool:
            raise MemoryError("the process was killed") from None


def _extra_memory_cpu(provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype) -> int:
    check_on_few(provider, objective, n, d, dtype, "cpu")  # also loads the libraries and starts their threads
    step = provider.prepare(make_batch(objective, n, d, dtype))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _extra_memory_cuda(provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype) -> int:
    check_on_few(provider, objective, n, d, dtype, "cuda")
    step = provider.prepare(make_batch(objective, n, d, dtype, "cuda"))
    step()  # libraries take their workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status, which is in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _fold(table: Tensor) -> Tensor:
    """A gradient of a symmetric table, which a provider may give to either triangle, all in the upper one."""
    return table.triu() + table.tril(-1).T
