"""Measures every provider at every size, and writes the CSV, the tables and the plots.

Results are merged into those that the folder holds, so that the sizes may be run one by one.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
from tqdm import tqdm

from .plot import plot
from .problems import VIEWS
from .providers import PROVIDERS, Provider
from .report import write_report
from .rows import merge, read_rows, write_rows
from .session import measure, product_rate

SIZES = [256 * 2**i for i in range(8)]  # 256 … 32768
QUICK = [256, 1024]


def main(arguments: list[str] | None = None, providers: tuple[Provider, ...] = PROVIDERS) -> int:
    """0, or 1 if a provider gave a wrong answer."""
    options = parse(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here")
    run = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = options.out / f"{options.device}.csv"
    rate = product_rate(options.device)
    refused = False
    for n in tqdm(sorted(options.sizes), desc="sizes", unit="size"):
        for objective in VIEWS:
            rows = measure(objective, n, options.dim, options.device, options.seconds, rate, run, providers)
            refused |= any(row.note.startswith("refused") for row in rows)
            write_rows(path, merge(read_rows(path), rows))
    plot(path)
    print(write_report(path))
    return int(refused)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="samples N (default: 256 … 32768)")
    sizes.add_argument("--quick", dest="sizes", action="store_const", const=QUICK, help=f"the same as --sizes {QUICK}")
    parser.add_argument("--dim", type=int, default=512, help="columns D (default: 512)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to repeat each objective and size in (60)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
