"""What is required of the figures, and what was measured: ratios within one run on one machine, at D = 512."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .problems import columns
from .providers import (
    COMPILED,
    EAGER,
    FLOOR,
    LINEAR_CROSS_ENTROPY,
    METRIC_LEARNING_SUP_CON,
    OPEN_CLIP,
    OPEN_CLIP_COMPILED,
    OURS,
    OURS_IN_CUDA,
    QUEUE_AS_ROWS,
    TUNED_COMPILED,
)
from .rows import Row

D = 512
GPU_N = 21846  # 65538 rows of MP-NCE


@dataclass(frozen=True)
class Result:
    what: str
    measured: str
    required: str
    aim: str
    verdict: str  # "aim reached", "holds", "MISSED", "not measured" (and why) or "REFUSED"


@dataclass(frozen=True)
class Side:
    """Whose time is one side of a ratio."""

    provider: str
    objective: str = "MP-NCE"
    dtype: str = "float32"
    ranks: int = 1


@dataclass(frozen=True)
class Ratio:
    """Time of ``over`` by time of ``under``, both at N samples."""

    what: str
    n: int
    over: Side
    under: Side
    required: float
    aim: float | None = None
    at_least: bool = True

    def result(self, rows: list[Row]) -> Result:
        sign = "≥" if self.at_least else "≤"
        bounds = tuple("—" if x is None else f"{sign} {x:g}" for x in (self.required, self.aim))
        sides = self.over, self.under
        if any(row.refused and row.provider in {s.provider for s in sides} for row in rows):  # in whatever case
            return Result(self.what, "—", *bounds, "REFUSED: a wrong answer was given")
        over, under = (_find(rows, side, self.n) for side in sides)
        if over is None or under is None or over.run != under.run:
            why = next((f": {r.note}" for r in rows for s in sides if _is(r, s) and r.n == self.n and r.note), "")
            return Result(self.what, "—", *bounds, f"not measured{why}")
        ratio = over.p50 / under.p50
        holds, aimed = (
            x is not None and (ratio >= x if self.at_least else ratio <= x) for x in (self.required, self.aim)
        )
        measured = f"{ratio:.2f} ({_seconds(over.p50)} / {_seconds(under.p50)}"
        if self.over.provider == FLOOR:
            measured += f"; {_rate(under)} of {_rate(over)}"
        return Result(self.what, measured + ")", *bounds, _verdict(holds, aimed))


_OURS, _OURS_INFONCE, _OURS_QUEUE = Side(OURS), Side(OURS, "InfoNCE"), Side(OURS, "Queue")
_BF16 = "bfloat16"
_OURS_BF16, _OURS_INFONCE_BF16 = Side(OURS, dtype=_BF16), Side(OURS, "InfoNCE", _BF16)

CPU_RATIOS = (
    Ratio("4M²D flops by torch.mm / ours, fp32, N = 4096", 4096, Side(FLOOR), _OURS, 0.9, 0.95),
    Ratio("eager PyTorch reference / ours, fp32, N = 4096", 4096, Side(EAGER), _OURS, 4, 8),
    Ratio("torch.compile of that reference / ours, fp32, N = 4096", 4096, Side(COMPILED), _OURS, 2, 4),
    Ratio(
        "torch.compile of a loss tuned for views / ours, fp32, N = 4096", 4096, Side(TUNED_COMPILED), _OURS, 1.1, 1.3
    ),
    Ratio("open_clip ClipLoss / ours, InfoNCE, N = 4096", 4096, Side(OPEN_CLIP, "InfoNCE"), _OURS_INFONCE, 1.9, 2.5),
    Ratio(
        "linear_cross_entropy, chunked, both directions / ours, InfoNCE, N = 4096",
        4096,
        Side(LINEAR_CROSS_ENTROPY, "InfoNCE"),
        _OURS_INFONCE,
        1.4,
        1.6,
    ),
    Ratio(
        "pytorch-metric-learning SupConLoss / ours, SupCon, 12288 rows",
        4096,
        Side(METRIC_LEARNING_SUP_CON, "SupCon"),
        Side(OURS, "SupCon"),
        10,
        15,
    ),
    Ratio("ours fp32 / ours bf16, N = 4096", 4096, _OURS, _OURS_BF16, 1.6, 2),
    Ratio("ours / eager PyTorch reference, fp32, N = 256", 256, _OURS, Side(EAGER), 0.7, 0.5, at_least=False),
    Ratio(
        "eager logsumexp over [batch, queue] / ours, 65536 rows in it", 4096, Side(EAGER, "Queue"), _OURS_QUEUE, 2, 4
    ),
    Ratio("queue as rows / as candidates, fp32, N = 4096", 4096, Side(QUEUE_AS_ROWS, "Queue"), _OURS_QUEUE, 1.0),
)

_GPU_FLOOR = Side(FLOOR, dtype=_BF16)
GPU_RATIOS = (
    Ratio("eager PyTorch reference / ours, bf16, 65538 rows", GPU_N, Side(EAGER, dtype=_BF16), _OURS_BF16, 2.1),
    Ratio("torch.compile of that / ours, bf16, 65538 rows", GPU_N, Side(COMPILED, dtype=_BF16), _OURS_BF16, 1.5),
    Ratio(
        "open_clip ClipLoss / ours, InfoNCE, bf16, 65536 rows",
        32768,
        Side(OPEN_CLIP, "InfoNCE", _BF16),
        _OURS_INFONCE_BF16,
        2.1,
    ),
    Ratio(
        "torch.compile of that / ours, InfoNCE, bf16, 65536 rows",
        32768,
        Side(OPEN_CLIP_COMPILED, "InfoNCE", _BF16),
        _OURS_INFONCE_BF16,
        1.5,
    ),
    Ratio("4M²D flops by torch.mm / ours, bf16, 65538 rows", GPU_N, _GPU_FLOOR, _OURS_BF16, 0.7),
    Ratio(
        "4M²D flops by torch.mm / our cuda backend, bf16, 65538 rows",
        GPU_N,
        _GPU_FLOOR,
        Side(OURS_IN_CUDA, dtype=_BF16),
        0.7,
    ),
)


def results(rows: Iterable[Row]) -> list[Result]:
    """Every requirement of the device that the rows are of, in turn."""
    rows = list(rows)
    on_cpu = rows[0].device == "cpu"
    rows = [row for row in rows if row.d == columns(row.objective, D)]
    found = [ratio.result(rows) for ratio in (CPU_RATIOS if on_cpu else GPU_RATIOS)]
    return [*found, _extra_memory(rows), _largest(rows)] if on_cpu else [*found, _gpu_memory(rows)]


def _gpu_memory(rows: list[Row]) -> Result:
    what, bound = "extra peak memory, bf16, 65538 rows", 1.5e9
    row = _find(rows, _OURS_BF16, GPU_N)
    if row is None:
        return Result(what, "—", "< 1.5 GB", "—", "not measured")
    return Result(what, f"{row.extra_bytes / 1e9:.2f} GB", "< 1.5 GB", "—", _verdict(row.extra_bytes < bound, False))


def _extra_memory(rows: list[Row]) -> Result:
    required, aim = "≤ 4·M·D·4 B + 64 MB", "≤ 3·M·D·4 B + 32 MB"
    ours = [row for row in rows if row.provider == OURS and row.extra_bytes is not None]
    if not ours:
        return Result("extra peak memory, any M", "—", required, aim, "not measured")

    def worst(matrices: int, megabytes: int) -> float:
        return max(row.extra_bytes / (matrices * row.m * row.d * 4 + megabytes * 10**6) for row in ours)

    of_required, of_aim = worst(4, 64), worst(3, 32)
    measured = f"at most {of_required:.2f} of the bound, {of_aim:.2f} of the aim, over {len(ours)} cases"
    return Result("extra peak memory, any M", measured, required, aim, _verdict(of_required <= 1, of_aim <= 1))


def _largest(rows: list[Row]) -> Result:
    what, n = "N = 32768 (98304 rows), fp32", 32768
    bounds = "completes", "memory linear in N"
    largest = _find(rows, _OURS, n)
    if largest is None:
        return Result(what, "—", *bounds, "not measured")
    curve = [row for row in rows if row.extra_bytes is not None and _is(row, _OURS)]
    m, extra = (np.array([getattr(row, name) for row in curve], float) for name in ("m", "extra_bytes"))
    measured = f"{_seconds(largest.p50)}, {largest.extra_bytes / 1e6:.0f} MB extra"
    if len(curve) < 4:
        return Result(what, measured, *bounds, "holds")
    slope, start = np.polyfit(m, extra, 1)
    residual = np.sum((extra - slope * m - start) ** 2) / np.sum((extra - extra.mean()) ** 2)
    measured += f"; {start / 1e6:.0f} MB + {slope / (4 * D):.2f}·M·D·4 B fits with R² = {1 - residual:.4f}"
    return Result(what, measured, *bounds, _verdict(True, residual <= 0.001))


def _find(rows: list[Row], side: Side, n: int) -> Row | None:
    return next((row for row in rows if _is(row, side) and row.n == n and row.p50 is not None), None)


def _is(row: Row, side: Side) -> bool:
    return Side(row.provider, row.objective, row.dtype, row.ranks) == side


def _verdict(holds: bool, aimed: bool) -> str:
    return "aim reached" if holds and aimed else "holds" if holds else "MISSED"


def _rate(row: Row) -> str:
    """Of the 4M²D flops that are needed."""
    rate = 4 * row.m**2 * row.d / row.p50
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
