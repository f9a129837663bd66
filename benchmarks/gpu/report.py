"""The CSV and the Markdown of one run of `make gpu`, whole again after every result."""

from __future__ import annotations

from pathlib import Path

from ..providers import OURS
from ..report import digits, table
from ..rows import Row, write_rows
from .task import Check, Failure, Note, Result, Task


class Report:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[Row] = []
        self.checks: list[Check] = []
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.missing: list[str] = []

    @property
    def failed(self) -> bool:
        wrong = any(row.refused and row.provider.startswith(OURS) for row in self.rows)
        return wrong or bool(self.failures) or any(check.failures for check in self.checks)

    def add(self, task: Task, result: Result | Failure) -> None:
        if isinstance(result, Row):
            self.rows.append(result)
        elif isinstance(result, Check):
            self.checks.append(result)
        elif isinstance(result, Note):
            self.notes.append(f"{task}: {result.text}")
        else:
            self.failures.append(f"{task}: {result.text}")
        self.write()

    def not_reached(self, task: Task) -> None:
        self.missing.append(str(task))
        self.write()

    def write(self) -> None:
        write_rows(self.folder / "gpu.csv", self.rows)
        (self.folder / "gpu.md").write_text(self.markdown())

    def markdown(self) -> str:
        text = "# What `make gpu` found\n"
        if self.rows:
            row = self.rows[0]
            text += f"\n{row.machine}; {row.version}; {row.run}\n"
        text += _list("Failed", self.failures)
        if self.checks:
            lines = [[c.what, c.dtype, str(c.passed), str(c.skipped), str(len(c.failures))] for c in self.checks]
            text += "\n## checks\n\n" + table(["what", "dtype", "passed", "skipped", "failed"], lines)
            text += "".join(f"\n* {check.what}, {check.dtype}: {f}" for check in self.checks for f in check.failures)
        for key in dict.fromkeys(_group(row) for row in self.rows):
            part, objective, d = key
            text += f"\n## {part}: {objective}, D = {d}\n\n" + self._table([r for r in self.rows if _group(r) == key])
        return text + _list("Notes", self.notes) + _list("Not reached in the time that there was", self.missing)

    def _table(self, rows: list[Row]) -> str:
        ours = {(row.n, row.dtype): row.p50 for row in rows if row.provider == OURS and row.p50 is not None}
        head = [
            "N",
            "what",
            "mode",
            "dtype",
            "median",
            "20th to 80th percentile",
            "10¹²/s",
            "memory",
            "by ours",
            "MHz",
            "note",
        ]
        return table(head, [_cells(row, ours.get((row.n, row.dtype))) for row in rows])


def _group(row: Row) -> tuple[str, str, int]:
    return row.part, row.objective, row.d


def _cells(row: Row, ours: float | None) -> list[str]:
    name = [str(row.n), row.provider, row.mode, row.dtype]
    if row.p50 is None:
        return [*name, *[""] * 6, row.note]
    rate = "" if row.work is None else digits(row.work / row.p50 / 1e12)
    memory = "" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:.0f} MB"
    spread = f"{_milliseconds(row.p20)} to {_milliseconds(row.p80)}" if row.repetitions > 1 else ""
    by_ours = "" if ours is None else f"{row.p50 / ours:.2f}"
    clock = "" if row.clock_mhz is None else str(row.clock_mhz)
    return [*name, f"{_milliseconds(row.p50)} ms", spread, rate, memory, by_ours, clock, row.note]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def _list(title: str, lines: list[str]) -> str:
    return f"\n## {title}\n\n" + "".join(f"* {line}\n" for line in lines) if lines else ""
