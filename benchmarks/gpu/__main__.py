"""`make gpu`: checks and measures on the GPU that is here, the most valuable figures first.

make gpu                                       sets up .venv, then every part; the whole grid of sizes takes an hour or more
make gpu ARGS="--existing --minutes 9"         installs nothing and needs no network: with the torch, compilers and pytest of
                                               the environment of `make gpu PYTHON=...`, what can be done in nine minutes
make gpu ARGS="--only product,kernels"         some parts
make gpu ARGS=--dry-run                        the same steps without a GPU, with a clock that measures nothing

Needs Python alone. What it doesn't know it hands to benchmarks.run, for the part `sizes`: --sizes 4096 --seconds 5.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import environment
from .environment import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("checks", "ceilings", "end_to_end", "product", "kernels", "tests", "sizes", "profile")  # by value


def main(arguments: list[str] | None = None) -> int:
    begin = time.time()
    options, others = parse(arguments)
    if not options.dry_run and not environment.has_gpu():
        print(
            "make gpu: there is no GPU here, or no driver for it. `make gpu ARGS=--dry-run` goes through the steps without.",
            file=sys.stderr,
        )
        return 1
    if not options.existing and (status := environment.take(environment.installation(options.python, options.dry_run))):
        return status
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uniclip-wheels-") as rivals:
        if options.wheels is not None:
            print(f"unpacked: {', '.join(environment.unpack(options.wheels, Path(rivals))) or 'no wheel'}", flush=True)
        python = sys.executable if options.existing else options.python
        command = [python, "-m", "benchmarks.gpu.session", "--out", str(options.out), "--parts", ",".join(options.only)]
        command += ["--dry-run"] * options.dry_run
        if options.existing and not options.no_build:
            command.append("--build")
        if options.minutes is not None:
            command += ["--deadline", str(begin + 60 * options.minutes)]
        variables = {"PYTHONPATH": os.pathsep.join([str(ROOT), rivals, *filter(None, [os.environ.get("PYTHONPATH")])])}
        if options.dry_run:
            variables |= {"TORCHDYNAMO_DISABLE": "1", "TRITON_INTERPRET": "1"}
        return _logged([*command, "--", *others], os.environ | variables, options.out / "gpu.log")


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what is for benchmarks.run."""
    parser = argparse.ArgumentParser(
        prog="make gpu",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default=sys.executable, help="of the environment that `make install` makes")
    parser.add_argument("--existing", action="store_true", help="install nothing; use this Python's environment")
    parser.add_argument("--no-build", action="store_true", help="with --existing: take the extensions that are there")
    parser.add_argument("--minutes", type=float, help="how long it may take, all in all")
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"parts, in this order: {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="folder for the results (benchmarks/results; a temporary one if dry)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of other kernels to compare with, pure Python")
    parser.add_argument("--dry-run", action="store_true", help="take the steps without a GPU and measure nothing")
    options, others = parser.parse_known_args(arguments)
    if options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="dry-run-")) if options.dry_run else RESULTS
    options.out = options.out.resolve()
    if options.dry_run and options.out.is_relative_to(RESULTS):
        parser.error("argument --out: a dry run measures nothing, and may not write among the results")
    return options, others


def _parts(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in chosen)


def _logged(command: list[str], variables: dict[str, str], log: Path) -> int:
    """Its exit status; what it prints is shown and kept."""
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
