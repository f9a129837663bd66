"""The second product of the gradient, half of all flops: H and Hᵀ times rows, by the side of a square panel."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..measure import WrongAnswerError
from ..rows import Row
from .task import Context, Task
from .timing import rows

PART = "product"
TILE = 128
SIDES = (32, 44, 64, 66, 72, 80, 86, 88, 90, 96, 110, 128, 132, 176)  # in tiles
COLUMNS = (512, 768, 1024)
_TOLERANCE = 1e-4  # of the largest entry: both add up in float32


def tasks(context: Context) -> list[Task]:
    return [Task(PART, f"D = {d}", functools.partial(_product, d), 6, needs_build=False) for d in COLUMNS]


def _product(d: int, context: Context) -> Iterator[Row]:
    where, tile, d = (context.device.tensors, 1, 16) if context.dry_run else (context.device.tensors, TILE, d)
    longest = SIDES[-1] * tile
    work = torch.randn(longest * longest, device=where).bfloat16()
    z, out = torch.randn(longest, d, device=where).bfloat16(), torch.zeros(longest, d, device=where)
    steps, fields = {}, {}
    for side in SIDES:
        n = side * tile
        h = work[: n * n].view(n, n)
        for name, left in (("H", h), ("Hᵀ", h.T)):
            _check(left, z[:n], out[:n])
            steps[f"{name} {side}"] = functools.partial(_accumulate, out[:n], left, z[:n])
            fields[f"{name} {side}"] = {
                "part": PART,
                "objective": f"{name}, bfloat16 to float32",
                "provider": f"addmm, {side} tiles",
                "mode": "products",
                "n": n,
                "m": n,
                "d": d,
                "dtype": "bfloat16",
                "work": 2 * n * n * d,
            }
    yield from rows(context, steps, 0 if context.dry_run else 2.0, fields)


def _accumulate(out: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    """As the engine does it; PyTorch has no such product on the CPU, where a dry run is."""
    if out.is_cuda:
        return [torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, out=out)]
    return [out.addmm_(a.float(), b.float())]


def _check(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Some rows of it."""
    out.zero_()
    _accumulate(out, a, b)
    expected = a[:TILE].float() @ b.float()
    error = ((out[:TILE] - expected).abs().max() / expected.abs().max()).item()
    if not error <= _TOLERANCE:  # so that NaN fails
        raise WrongAnswerError(f"addmm of {tuple(a.shape)} is off by {error:.1e} of the largest entry")
