"""Plots made from a CSV of results alone: time and memory against N, log-log, one picture for each objective."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .problems import VIEWS, size_text
from .rows import Row, latest_machine, plot_name, read_rows, series


def plot(path: Path) -> list[Path]:
    """Writes NAME_<objective>.png and .svg beside NAME.csv, and returns their paths."""
    rows = latest_machine(read_rows(path))
    written = []
    for objective in VIEWS:
        chosen = [row for row in rows if row.objective == objective and row.p50 is not None]
        if not chosen:
            continue
        figure = _figure(objective, chosen)
        stem = plot_name(path, objective)
        for suffix in ("png", "svg"):
            written.append(path.with_name(f"{stem}.{suffix}"))
            figure.savefig(written[-1], dpi=150, metadata={"Date": None} if suffix == "svg" else None)
        plt.close(figure)
    return written


def _figure(objective: str, rows: list[Row]) -> plt.Figure:
    figure, (time, memory) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    all_series = series(rows)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(provider for provider, _ in all_series))}
    for provider, dtype in all_series:
        line = sorted((r for r in rows if (r.provider, r.dtype) == (provider, dtype)), key=lambda r: r.n)
        n = [r.n for r in line]
        style = {"color": colours[provider], "marker": "o", "markersize": 4}
        style["linestyle"] = "-" if dtype == "float32" else "--"
        time.fill_between(n, [r.p20 for r in line], [r.p80 for r in line], color=style["color"], alpha=0.2, linewidth=0)
        time.plot(n, [r.p50 for r in line], label=f"{provider}, {dtype}", **style)
        memory.plot(n, [r.extra_bytes / 1e6 for r in line], **style)
    time.set_ylabel("time of forward + backward, s")
    memory.set_ylabel("peak memory beyond the inputs, MB")
    sizes = sorted({r.n for r in rows})
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel=f"samples N ({size_text(objective)})")
        axes.set_xticks(sizes, [str(n) for n in sizes], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    time.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{objective}, D = {rows[0].d}\n{rows[0].machine}; {rows[0].version}", fontsize=9)
    return figure
