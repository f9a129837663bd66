"""The Markdown tables made from a CSV of results."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, fields
from pathlib import Path

from .problems import VIEWS, size_text
from .ratios import Result, results
from .rows import Row, latest_machine, plot_name, read_rows, series

BEGIN, END = "<!-- results -->", "<!-- /results -->"  # in the README and in docs
HEADLINES = ("eager PyTorch reference / ours", "open_clip ClipLoss / ours", "extra peak memory", "N = 32768")


def write_report(path: Path) -> str:
    """Writes NAME.md and NAME_ratios.csv beside NAME.csv; returns the Markdown."""
    with path.with_name(f"{path.stem}_ratios.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, results(latest_machine(read_rows(path)))))
    text = markdown(path)
    path.with_suffix(".md").write_text(text)
    return text


def write_tables(readme: Path, page: Path, folder: Path) -> None:
    """The folder's reports on the CPU and the GPU, as far as it has them, in the page; in the README the headlines of each."""
    paths = [path for path in (folder / "cpu.csv", folder / "cuda.csv") if path.exists()]
    seen_from_page = Path(os.path.relpath(folder, page.parent))
    write_between_markers(page, "\n".join(markdown(path, seen_from_page) for path in paths))
    all_of_them = f"[All figures]({page.relative_to(readme.parent)})"
    write_between_markers(readme, "\n".join(headlines(path, all_of_them) for path in paths))


def write_between_markers(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page} has no {BEGIN} followed by {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def headlines(path: Path, all_of_them: str) -> str:
    """A few results, the same ones however they turn out, and how many of all are as required."""
    rows = latest_machine(read_rows(path))
    found = results(rows)
    chosen = [r for what in HEADLINES for r in found if r.what.startswith(what)]
    text = table(["what", "measured", "verdict"], [[r.what, r.measured, r.verdict] for r in chosen])
    hold, open_ones = (sum(r.verdict.startswith(v) for r in found) for v in (("holds", "aim reached"), "not measured"))
    return (
        f"{_head(rows)}\n{text}\n{all_of_them}: of {len(found)}, {hold} are as required and {open_ones} not measured.\n"
    )


def markdown(path: Path, folder: Path = Path()) -> str:
    """The report on the CSV's latest machine, with its plots, which lie in ``folder`` as seen from the text."""
    rows = latest_machine(read_rows(path))
    text = f"{_head(rows)}\n{ratio_table(results(rows))}"
    for objective in VIEWS:
        chosen = [row for row in rows if row.objective == objective]
        if chosen:
            text += f"\n### {objective}: {size_text(objective)}, D = {chosen[0].d}, forward + backward\n\n"
            text += size_table(chosen)
        if any(row.p50 is not None for row in chosen):
            text += f"\n![{objective}: time and memory by N]({folder / plot_name(path, objective)}.svg)\n"
    return text


def _head(rows: list[Row]) -> str:
    return f"{rows[0].machine}; {rows[0].version}; {', '.join(sorted({row.run[:10] for row in rows}))}\n"


def ratio_table(found: list[Result]) -> str:
    head = ["what", "measured", "at least", "aim", "verdict"]
    return table(head, [[r.what, r.measured, r.required, r.aim, r.verdict] for r in found])


def size_table(rows: list[Row]) -> str:
    """Median time, spread and extra memory of each provider by N; a dash and the reason where there is none."""
    columns = series(rows)
    by_cell = {(row.provider, row.dtype, row.n): row for row in rows}
    lines, reasons = [], []
    for n in sorted({row.n for row in rows}):
        cells = [by_cell.get((*column, n)) for column in columns]
        lines.append([str(n), *("—" if cell is None else _cell(cell) for cell in cells)])
        reasons += [f"{c.provider}, {_short(c.dtype)}, at N = {n}: {c.note}" for c in cells if c is not None and c.note]
    text = table(["N", *(f"{provider}, {_short(dtype)}" for provider, dtype in columns)], lines)
    text += "\nMedian time of a step (20th to 80th percentile) and peak memory beyond the inputs.\n"
    return text + "".join(f"\n* — {reason}" for reason in reasons) + "\n" * bool(reasons)


def _cell(row: Row) -> str:
    return "—" if row.p50 is None else f"{time_text(row)}, {megabytes(row.extra_bytes)}"


def time_text(row: Row) -> str:
    unit, scale = ("s", 1) if row.p50 >= 1 else ("ms", 1e3)
    p20, p50, p80 = (digits(p * scale) for p in (row.p20, row.p50, row.p80))
    return f"{p50} {unit}" + (f" ({p20} to {p80})" if row.repetitions > 1 else "")


def megabytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB" if number >= 1e6 else "< 1 MB"


def digits(x: float) -> str:
    """Three significant ones, never with an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[dtype]


def table(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))
