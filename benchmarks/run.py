"""Measures every provider at every size, and writes the CSV, the tables, the plots and those of the README and docs.

Results are merged into those that the folder holds, so that the sizes may be run one by one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType

import torch

from .devices import CPU, CUDA
from .dry_run import DryRun
from .problems import MOST_SAMPLES, VIEWS, columns
from .progress import bar
from .providers import PROVIDERS, Provider
from .ratios import GPU_N
from .report import write_report, write_tables
from .rows import merge, read_rows, write_rows
from .session import measure, product_rate

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
DEVICES = {device.name: device for device in (CPU, CUDA, DryRun)}
SIZES = [256 * 2**i for i in range(8)]  # 256 … 32768
QUICK = [256, 1024]


def main(
    arguments: list[str] | None = None,
    providers: tuple[Provider, ...] = PROVIDERS,
    unusable: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """0, or 1 if a provider gave a wrong answer. ``unusable``: backends that are not to be measured, and why."""
    options = parse(arguments)
    device = DEVICES[options.device]()
    run = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = options.out / f"{device.name}.csv"
    rate = product_rate(device)
    refused = False
    for n in bar(sorted(options.sizes), desc="sizes", unit="size"):
        for objective in VIEWS:
            if n > MOST_SAMPLES.get(objective, n):
                continue
            sizes = objective, n, columns(objective, options.dim)
            rows = measure(*sizes, device, options.seconds, rate, run, providers, unusable=unusable)
            refused |= any(row.refused for row in rows)
            write_rows(path, merge(read_rows(path), rows))
    _plot(path)
    print(write_report(path))
    if options.out == RESULTS:
        write_tables(ROOT / "README.md", ROOT / "docs" / "benchmarks.md", RESULTS)
    print(f"written to {options.out}")
    if refused:
        print("WRONG ANSWERS were refused; the tables say which. There is no ratio for who gave one.", file=sys.stderr)
    return int(refused)


def _plot(path: Path) -> None:
    try:
        from .plot import plot
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return
    plot(path)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--sizes", type=int, nargs="+", help=f"samples N (256 … 32768; on a GPU {GPU_N} too)")
    sizes.add_argument("--quick", dest="sizes", action="store_const", const=QUICK, help=f"the same as --sizes {QUICK}")
    parser.add_argument("--dim", type=int, default=512, help="columns D (default: 512)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to repeat each objective and size in (20)")
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu", help="dry-run: pretend to have a GPU, measure nothing"
    )
    parser.add_argument("--out", type=Path, help="folder for the results (benchmarks/results; a temporary one if dry)")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    command = parser()
    options = command.parse_args(arguments)
    dry = options.device == DryRun.name
    if options.device == CUDA.name and not torch.cuda.is_available():
        command.error("argument --device: PyTorch finds no CUDA device here")
    if options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="dry-run-")) if dry else RESULTS
    options.out = options.out.resolve()
    if dry and options.out.is_relative_to(RESULTS):
        command.error("argument --out: a dry run measures nothing, and may not write among the results")
    if options.sizes is None:
        options.sizes = SIZES if options.device == CPU.name else [*SIZES, GPU_N]
    return options


if __name__ == "__main__":
    sys.exit(main())
