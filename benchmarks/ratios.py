"""What is required of the CPU figures, and what was measured: ratios within one run on one machine, at D = 512."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .providers import COMPILED, EAGER, FLOOR, LINEAR_CROSS_ENTROPY, OPEN_CLIP, OURS
from .rows import Row

D = 512


@dataclass(frozen=True)
class Result:
    what: str
    measured: str
    required: str
    aim: str
    verdict: str  # "aim reached", "holds", "MISSED" or "not measured"


@dataclass(frozen=True)
class Side:
    """Whose time is one side of a ratio."""

    provider: str
    objective: str = "MP-NCE"
    dtype: str = "float32"


@dataclass(frozen=True)
class Ratio:
    """Time of ``over`` by time of ``under``, both at N samples."""

    what: str
    n: int
    over: Side
    under: Side
    required: float
    aim: float
    at_least: bool = True

    def result(self, rows: list[Row]) -> Result:
        over, under = _find(rows, self.over, self.n), _find(rows, self.under, self.n)
        sign = "≥" if self.at_least else "≤"
        bounds = f"{sign} {self.required:g}", f"{sign} {self.aim:g}"
        if over is None or under is None or over.run != under.run:
            return Result(self.what, "—", *bounds, "not measured")
        ratio = over.p50 / under.p50
        holds, aimed = ((ratio >= x) == self.at_least or ratio == x for x in (self.required, self.aim))
        measured = f"{ratio:.2f} ({_seconds(over.p50)} / {_seconds(under.p50)})"
        return Result(self.what, measured, *bounds, _verdict(holds, aimed))


_OURS, _OURS_INFONCE = Side(OURS), Side(OURS, "InfoNCE")

RATIOS = (
    Ratio("4M²D flops by torch.mm / ours, fp32, N = 4096", 4096, Side(FLOOR), _OURS, 0.85, 0.95),
    Ratio("eager PyTorch reference / ours, fp32, N = 4096", 4096, Side(EAGER), _OURS, 3.5, 4),
    Ratio("torch.compile of that reference / ours, fp32, N = 4096", 4096, Side(COMPILED), _OURS, 2, 4),
    Ratio("open_clip ClipLoss / ours, InfoNCE, N = 4096", 4096, Side(OPEN_CLIP, "InfoNCE"), _OURS_INFONCE, 2, 2.5),
    Ratio(
        "linear_cross_entropy, chunked, both directions / ours, InfoNCE, N = 4096",
        4096,
        Side(LINEAR_CROSS_ENTROPY, "InfoNCE"),
        _OURS_INFONCE,
        1.3,
        1.6,
    ),
    Ratio("ours fp32 / ours bf16, N = 4096", 4096, _OURS, Side(OURS, dtype="bfloat16"), 2, 3),
    Ratio("ours / eager PyTorch reference, fp32, N = 256", 256, _OURS, Side(EAGER), 1.0, 0.7, at_least=False),
)


def results(rows: Iterable[Row]) -> list[Result]:
    """Every requirement in turn."""
    rows = [row for row in rows if row.device == "cpu" and row.d == D]
    return [*(ratio.result(rows) for ratio in RATIOS), _extra_memory(rows), _largest(rows)]


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
    return (row.provider, row.objective, row.dtype) == (side.provider, side.objective, side.dtype)


def _verdict(holds: bool, aimed: bool) -> str:
    return "aim reached" if holds and aimed else "holds" if holds else "MISSED"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
