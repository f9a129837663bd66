"""The headline figures: forward and backward of whole losses, ours beside all others, each checked before it is timed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch

from ..providers import PROVIDERS, REPLAYED, Provider
from ..rows import Row
from ..session import measure, product_rate
from .task import Context, Task

PART = "end_to_end"
#: Objective, samples N, columns D: 98304 rows; CLIP as the published figures have it; 65536 rows in a queue; two that
#: the host bounds.
PROBLEMS = (
    ("MP-NCE", 32768, 512),
    ("InfoNCE", 65536, 512),
    ("InfoNCE", 65536, 768),
    ("Queue", 4096, 256),
    ("MP-NCE", 256, 512),
    ("MP-NCE", 4096, 512),
)
#: Small, for packages that compute in float32 with M x M matrices.
DENSE = (("InfoNCE", 4096, 512), ("NT-Xent", 4096, 512), ("SupCon", 4096, 512))
HOST_BOUND = 4096  # samples at most: replays of CUDA graphs beside the rest
SECONDS = 4.0  # to repeat the steps of one problem in
_IS_COMPILED = "torch.compile"


def tasks(context: Context) -> list[Task]:
    """PyTorch's own first, so that none of other packages can take these figures along; then torch.compile, which takes most of
    the time to prepare; float32 last."""
    bf16, fp32 = (torch.bfloat16,), (torch.float32,)
    clip = tuple(problem for problem in PROBLEMS if problem[0] == "InfoNCE")

    def plain(p: Provider) -> bool:
        return p.is_ours or not (p.is_foreign or _IS_COMPILED in p.name)

    passes = [
        (PART, bf16, PROBLEMS, plain, 12),
        (
            f"{PART}, beside other packages",
            bf16,
            clip,
            lambda p: p.is_ours or (p.is_foreign and _IS_COMPILED not in p.name),
            15,
        ),
        (f"{PART}, beside torch.compile", bf16, PROBLEMS, lambda p: p.is_ours or _IS_COMPILED in p.name, 30),
        (f"{PART}, float32", fp32, PROBLEMS[-1:], plain, 12),
        (f"{PART}, float32, beside other packages", fp32, DENSE, lambda p: _IS_COMPILED not in p.name, 15),
    ]
    return [
        Task(PART, f"{objective}, N = {n}, D = {d}{part.removeprefix(PART)}", run, seconds)
        for part, dtypes, problems, wanted, seconds in passes
        for objective, n, d in problems
        if (run := functools.partial(_problem, part, dtypes, wanted, objective, n, d))
    ]


def _problem(part: str, dtypes, wanted, objective: str, n: int, d: int, context: Context) -> Iterator[Row]:
    providers: tuple[Provider, ...] = PROVIDERS + (REPLAYED if n <= HOST_BOUND else ())
    chosen = tuple(p for p in providers if wanted(p))
    seconds = 0 if context.dry_run else SECONDS
    if context.dry_run:
        n, d = 24 + n // 4096, 16
    rate = product_rate(context.device)
    for row in measure(objective, n, d, context.device, seconds, rate, context.run, chosen, dtypes, context.unusable):
        yield dataclasses.replace(row, part=part)
