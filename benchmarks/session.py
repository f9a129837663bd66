"""All providers of one objective at one size: what fits is checked, its memory measured, and all are timed in turn."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from .definitions import ALIKE_IN_PAIRS, expected_when_large
from .devices import Device
from .measure import CHECKED_SAMPLES, WrongAnswerError, check, repeat_interleaved
from .problems import Batch, make_batch, needed_flops, num_rows
from .progress import bar
from .providers import Provider
from .rows import Row, versions

LONGEST_STEP = 40.0  # seconds: a competitor that is predicted to take longer is left out


class OurError(RuntimeError):
    """A crash of our own, which is no figure to leave out but a reason to stop."""

    def __init__(self, message: str, provider: str) -> None:
        super().__init__(message)
        self.provider = provider


@dataclass
class Case:
    provider: Provider
    objective: str
    n: int
    d: int
    dtype: torch.dtype
    device: Device
    note: str = ""  # why it has no figures
    extra_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    clock_mhz: int | None = None

    @property
    def name(self) -> str:
        return f"{self.provider.name} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def m(self) -> int:
        return num_rows(self.objective, self.n)

    @property
    def sizes(self) -> tuple[str, int, int, torch.dtype]:
        return self.objective, self.n, self.d, self.dtype

    def batch(self) -> Batch:
        return make_batch(*self.sizes, self.device.tensors)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """What goes wrong within becomes the note; only a crash of our own ends the run."""
        try:
            yield
        except WrongAnswerError as error:
            self.note = f"refused: {error}"
        except (MemoryError, torch.OutOfMemoryError) as error:
            self.note = f"out of memory: {_first_line(error)}"
        except Exception as error:
            failure = f"{type(error).__name__}: {_first_line(error)}"
            if self.provider.is_ours:
                raise OurError(f"{self.name}: {failure}", self.provider.name) from error
            self.note = f"failed: {failure}"

    def row(self, run: str) -> Row:
        p20, p50, p80 = np.quantile(self.seconds, (0.2, 0.5, 0.8)).tolist() if self.seconds else (None,) * 3
        return Row(
            device=self.device.name,
            objective=self.objective,
            provider=self.provider.name,
            mode=self.provider.mode,
            n=self.n,
            m=self.m,
            d=self.d,
            dtype=self.dtype_name,
            p20=p20,
            p50=p50,
            p80=p80,
            repetitions=len(self.seconds),
            extra_bytes=self.extra_bytes if self.seconds else None,
            note=self.note,
            machine=self.device.machine(),
            version=versions(self.device.has_triton),
            run=run,
            work=needed_flops(self.objective, self.n, self.d),
            clock_mhz=self.clock_mhz if self.seconds else None,
        )


def measure(
    objective: str,
    n: int,
    d: int,
    device: Device,
    seconds: float,
    rate: float,
    run: str,
    providers: tuple[Provider, ...],
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    unusable: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """One row for each provider and dtype of the objective; ``rate`` is that of float32 products, in flops a second.

    ``unusable``: our backends on a GPU and providers that are not to be measured, and why.
    """
    cases = [
        Case(provider, objective, n, d, dtype, device)
        for provider in providers
        if objective in provider.objectives
        for dtype in provider.dtypes(device.name)
        if dtype in dtypes
    ]
    for case in cases:
        provider = case.provider
        case.note = unusable.get(provider.backend) or unusable.get(provider.name) or impossible(case, rate)
    for case in bar([c for c in cases if not c.note], desc=f"{objective} N={n} memory", leave=False):
        with case.noting():
            case.extra_bytes = device.extra_memory(case.provider, *case.sizes)

    steps, first, standards = {}, {}, {}
    with bar(desc=f"{objective} N={n} time", leave=False, unit="step") as progress:
        for case in sorted((c for c in cases if not c.note), key=lambda c: c.provider.is_ours):
            with case.noting():
                step = case.provider.prepare(case.batch())
                taken, result = device.timed(step)
                judge(case, result, standards)
                steps[case.name], first[case.name] = step, taken
            progress.update()
        times = repeat_interleaved(steps, first, device.timed, seconds, progress.update)
    clock = device.clock_mhz()  # one for all, as they take turns
    for case in cases:
        case.seconds, case.clock_mhz = times.get(case.name, []), clock
    return [case.row(run) for case in cases]


def impossible(case: Case, rate: float) -> str:
    """Why the case cannot run here, by what its provider is known to need; empty if it can. Ours may take its time."""
    if reason := missing(case.provider.module):
        return reason
    need = case.provider.bytes_needed(case.m, case.d, case.dtype)
    have = case.device.available_memory()
    if need > have:
        return f"needs about {need / 2**30:.0f} GiB, {have / 2**30:.0f} are free"
    seconds = case.provider.floors * 4 * case.m**2 * case.d / rate
    too_long = seconds > LONGEST_STEP and not case.provider.is_ours
    return f"would take about {seconds:.0f} s" if too_long else ""


def judge(case: Case, result: list[Tensor], standards: dict) -> None:
    """Against the right answer or, where that takes too long, the first result of the mode: not ours, where another ran.

    ``standards`` remembers either for the cases of one problem. Raises WrongAnswerError.
    """
    provider = case.provider
    if case.n <= CHECKED_SAMPLES or not provider.needs_small_batch:
        check(result, provider.expected(case.batch()), case.dtype)
    elif case.device.fast and provider.expected in ALIKE_IN_PAIRS:
        if case.dtype not in standards:
            standards[case.dtype] = expected_when_large(case.batch())
        check(result, standards[case.dtype], case.dtype)
    else:
        dtype, standard = standards.setdefault(provider.mode, (case.dtype, result))
        check(result, standard, max(case.dtype, dtype, key=lambda t: torch.finfo(t).eps))


def product_rate(device: Device) -> float:
    """Flops a second of float32 matrix products."""
    z = torch.randn(2048, 512, device=device.tensors)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (z @ z.T).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * 2048**2 * 512 / min(times)


def missing(needed: str) -> str:
    """What is not there of a module, or of one and a name in it, "module:name"; empty if all is."""
    module, _, name = needed.partition(":")
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        there = False
    if not there:
        return f"{module} is not installed"
    return "" if not name or hasattr(importlib.import_module(module), name) else f"{module} has no {name} here"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
