"""Every competitor over the sizes of ``benchmarks.run``, for its tables and plots: the sizes that verdicts are on first."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator

from .. import run
from ..ratios import GPU_N
from .task import Context, Note, Task

PART = "sizes"
FIRST = (GPU_N, 32768, 4096, 256)


def tasks(context: Context) -> list[Task]:
    options = run.parser().parse_args(context.arguments)
    sizes = options.sizes or ([24] if context.dry_run else [*run.SIZES, GPU_N])
    dim, seconds = (16, 0.0) if context.dry_run else (options.dim, options.seconds)
    ordered = sorted(sizes, key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), -n))
    return [Task(PART, f"N = {n}", functools.partial(_size, n, dim, seconds), 30) for n in ordered]


def _size(n: int, dim: int, seconds: float, context: Context) -> Iterator[Note]:
    name = context.device.name
    arguments = [
        "--device",
        name,
        "--sizes",
        str(n),
        "--dim",
        str(dim),
        "--seconds",
        str(seconds),
        "--out",
        str(context.out),
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # the tables, again after each size
        status = run.main(arguments, unusable=context.unusable)
    if status:
        raise RuntimeError(f"a wrong answer was refused; {name}.md says whose")
    yield Note(f"in {name}.md")
