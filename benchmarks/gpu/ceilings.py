"""What this card gives at most: a large product, a copy in its memory, a copy in its second-level cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..rows import Row
from .task import Context, Task
from .timing import rows

PART = "ceilings"
SIDE = 8192
COPIES = {"memory": 2 << 30, "second-level cache": 12 << 20}  # bytes of one side


def tasks(context: Context) -> list[Task]:
    return [Task(PART, "product and copies", _ceilings, 5, needs_build=False)]


def _ceilings(context: Context) -> Iterator[Row]:
    where, side = context.device.tensors, 32 if context.dry_run else SIDE
    a, b = (torch.randn(side, side, device=where).bfloat16() for _ in range(2))
    c = torch.empty_like(a)
    steps = {"torch.mm": lambda: [torch.mm(a, b, out=c)]}
    common = {"part": PART, "provider": "PyTorch"}
    fields = {
        "torch.mm": common
        | {
            "objective": "product",
            "mode": "mm",
            "n": side,
            "m": side,
            "d": side,
            "dtype": "bfloat16",
            "work": 2 * side**3,
        }
    }
    for name, size in COPIES.items():
        elements = 64 if context.dry_run else size // 4
        source = torch.randn(elements, device=where)
        target = torch.empty_like(source)
        steps[name] = lambda source=source, target=target: [target.copy_(source)]
        shape = {"n": elements, "m": elements, "d": 1, "dtype": "float32", "work": 8 * elements}
        fields[name] = common | {"objective": f"copy, {name}", "mode": "copy"} | shape
    yield from rows(context, steps, 0 if context.dry_run else 2.0, fields)
