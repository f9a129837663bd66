"""All providers of one objective at one size: what fits is checked, its memory measured, and all are timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .measure import CHECKED_SAMPLES, WrongAnswerError, check, extra_memory, time_interleaved
from .problems import VIEWS, make_batch
from .providers import Provider
from .rows import Row, machine, versions

LONGEST_STEP = 200.0  # seconds: what is predicted to take longer is left out


@dataclass
class Case:
    provider: Provider
    objective: str
    n: int
    d: int
    dtype: torch.dtype
    device: str
    note: str = ""  # why it has no figures
    extra_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.provider.name} {self.dtype_name}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def m(self) -> int:
        return self.n * len(VIEWS[self.objective])

    @property
    def sizes(self) -> tuple[str, int, int, torch.dtype, str]:
        return self.objective, self.n, self.d, self.dtype, self.device

    def row(self, run: str) -> Row:
        p20, p50, p80 = np.quantile(self.seconds, (0.2, 0.5, 0.8)).tolist() if self.seconds else (None,) * 3
        return Row(
            device=self.device,
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
            machine=machine(self.device),
            version=versions(),
            run=run,
        )


def measure(
    objective: str,
    n: int,
    d: int,
    device: str,
    seconds: float,
    rate: float,
    run: str,
    providers: tuple[Provider, ...],
) -> list[Row]:
    """One row for each provider and dtype of the objective; ``rate`` is that of float32 products, in flops a second."""
    cases = [
        Case(provider, objective, n, d, dtype, device)
        for provider in providers
        if objective in provider.objectives
        for dtype in provider.dtypes(device)
    ]
    for case in cases:
        case.note = too_much(case, rate)
    for case in tqdm([c for c in cases if not c.note], desc=f"{objective} N={n} memory", leave=False):
        try:
            case.extra_bytes = extra_memory(case.provider, *case.sizes)
        except WrongAnswerError as error:
            case.note = f"refused: {error}"
        except (MemoryError, torch.OutOfMemoryError) as error:
            case.note = f"out of memory: {error}"

    runnable = {case.name: case for case in cases if not case.note}
    with tqdm(desc=f"{objective} N={n} time", leave=False, unit="step") as bar:
        steps = {name: case.provider.prepare(make_batch(*case.sizes)) for name, case in runnable.items()}
        for name, taken in time_interleaved(steps, _judge(runnable), device, seconds, bar.update).items():
            runnable[name].seconds = taken
    return [case.row(run) for case in cases]


def too_much(case: Case, rate: float) -> str:
    """Why the case cannot run here, by what its provider is known to need; empty if it can."""
    need = (case.provider.matrices * case.m + 8 * case.d) * case.m * case.dtype.itemsize
    have = available_memory(case.device)
    if need > have:
        return f"needs about {need / 2**30:.0f} GiB, {have / 2**30:.0f} are free"
    seconds = case.provider.floors * 4 * case.m**2 * case.d / rate
    return f"would take about {seconds:.0f} s" if seconds > LONGEST_STEP else ""


def available_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def product_rate(device: str) -> float:
    """Flops a second of float32 matrix products."""
    z = torch.randn(2048, 512, device=device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (z @ z.T).sum().item()
        times.append(time.perf_counter() - start)
    return 2 * 2048**2 * 512 / min(times)


def _judge(cases: dict[str, Case]) -> Callable[[str, list[Tensor]], bool]:
    """Accepts what float64 confirms or, where inputs are too large for that, what agrees with the first result."""
    standards: dict[str, tuple[Case, list[Tensor]]] = {}

    def accept(name: str, result: list[Tensor]) -> bool:
        case = cases[name]
        try:
            if case.n <= CHECKED_SAMPLES or not case.provider.needs_small_batch:
                check(result, case.provider.expected(make_batch(*case.sizes)), case.dtype)
            else:
                first, standard = standards.setdefault(case.provider.mode, (case, result))
                check(result, standard, max(case.dtype, first.dtype, key=lambda t: torch.finfo(t).eps))
        except WrongAnswerError as error:
            case.note = f"refused: {error}"
        return not case.note

    return accept
