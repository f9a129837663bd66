"""The one schema of all results, and the CSV files that hold it."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import uniclip_kernels


@dataclass(frozen=True)
class Row:
    """One provider at one size. What was not measured is None, and ``note`` says why; it is never 0."""

    device: str  # "cpu", "cuda" or "dry-run"
    objective: str  # one of problems.VIEWS; another name where a part of the work is measured
    provider: str
    mode: str  # "forward+backward", or "products" for the floor
    n: int  # samples
    m: int  # rows, with those of a queue
    d: int
    dtype: str
    p20: float | None  # seconds a step
    p50: float | None
    p80: float | None
    repetitions: int
    extra_bytes: int | None  # peak beyond the inputs
    note: str
    machine: str
    version: str
    run: str  # when the run began: only times of one run are compared
    part: str = ""  # of `make gpu`
    work: float | None = None  # flops that the problem needs, or bytes that a copy moves
    clock_mhz: int | None = None  # of the GPU's multiprocessors, meanwhile
    ranks: int = 1  # processes that the rows are spread over
    sent_bytes: int | None = None  # by each rank in a step

    @property
    def refused(self) -> bool:
        """The answer was wrong."""
        return self.note.startswith("refused")

    @property
    def key(self) -> tuple:
        case = self.objective, self.provider, self.mode, self.n, self.d, self.dtype, self.ranks
        return self.device, *case, self.machine


def versions(with_triton: bool = False) -> str:
    """Of what the figures depend on. The package need not be installed; a folder that holds it will do."""
    try:
        triton = f"Triton {version('triton')}, " if with_triton else ""
    except PackageNotFoundError:
        triton = "no Triton, "
    return f"torch {torch.__version__}, {triton}uniclip-kernels {uniclip_kernels.__version__}"


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(
                **{f.name: _parse(f.type, line[f.name]) for f in fields(Row) if f.name in line}
            )  # older files lack some
            for line in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def plot_name(path: Path, objective: str) -> str:
    """Of the picture of an objective beside a CSV, without the suffix."""
    return f"{path.stem}_{objective.lower().replace('-', '_')}"


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """The new rows in the place of old ones of the same case, sorted by objective, provider, dtype, size and ranks."""
    rows = {row.key: row for row in (*old, *new)}
    return sorted(rows.values(), key=lambda row: (row.objective != "MP-NCE", row.provider, row.dtype, row.n, row.ranks))


def latest_machine(rows: list[Row]) -> list[Row]:
    """The rows of the machine that was measured last."""
    last = max(rows, key=lambda row: row.run).machine
    return [row for row in rows if row.machine == last]


def series(rows: list[Row]) -> list[tuple[str, str]]:
    """The (provider, dtype) of the rows: ours first, and one order for tables and plots."""
    return sorted(
        {(row.provider, row.dtype) for row in rows},
        key=lambda s: (not s[0].startswith("uniclip-kernels"), s[0], s[1] != "float32"),
    )


def _parse(kind: str, text: str):
    if "None" in kind and text == "":
        return None
    return {"str": str, "int": int, "float": float}[kind.split(" ")[0]](text)
