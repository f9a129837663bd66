"""The Triton kernels over tiles, each in every configuration of ``tuning``, on a rectangle off the diagonal."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from ..measure import WrongAnswerError
from ..providers import OURS
from ..rows import Row
from .task import Context, Note, Task
from .timing import rows

PART = "kernels"
TILES = 88  # of a side: whole waves of 132 multiprocessors, and 254 MB of H in 16 bits
CASES = ((torch.bfloat16, 512), (torch.bfloat16, 768), (torch.bfloat16, 1024), (torch.float32, 512))


def tasks(context: Context) -> list[Task]:
    return [
        Task(PART, f"D = {d}, {_name(dtype)}", functools.partial(_kernels, dtype, d), 15, needs_build=False)
        for dtype, d in (CASES[-1:] if context.dry_run else CASES)
    ]


def _kernels(dtype: torch.dtype, d: int, context: Context) -> Iterator[Row | Note]:
    if "triton" in context.unusable:
        yield Note(f"left out: {context.unusable['triton']}")
        return
    from .tile_kernels import TileKernels  # which imports Triton

    kernels = TileKernels(*((1, 16) if context.dry_run else (TILES, d)), dtype, context.device.tensors)
    steps, fields = {}, {}
    for kernel, configuration in kernels.configurations():
        text = ", ".join(f"{name}={value}" for name, value in configuration.items())
        field = {
            "part": PART,
            "objective": kernel.__name__,
            "provider": f"{OURS}: {text}",
            "mode": "off the diagonal",
            "n": kernels.side,
            "m": kernels.side,
            "d": kernels.problem.rows.shape[1],
            "dtype": _name(dtype),
            "work": 2 * kernels.side**2 * d,
        }
        try:
            steps[f"{kernel.__name__} {text}"] = kernels.prepare(kernel, configuration)
            fields[f"{kernel.__name__} {text}"] = field
        except Exception as error:  # a configuration that does not fit this part is no reason to leave out others
            word = "refused" if isinstance(error, WrongAnswerError) else "failed"
            note = f"{word}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            yield context.row(p20=None, p50=None, p80=None, repetitions=0, **field | {"note": note})
    yield from rows(context, steps, 0 if context.dry_run else 3.0, fields)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
