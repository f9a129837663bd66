"""What a competitor is: how it is prepared, what it needs, and what the right answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..definitions import expected
from ..problems import Batch

Step = Callable[[], list[Tensor]]
OURS, OURS_IN_CUDA = "uniclip-kernels", "uniclip-kernels, cuda backend"


@dataclass(frozen=True)
class Provider:
    name: str
    prepare: Callable[[Batch], Step]
    objectives: tuple[str, ...]
    # What a step takes at most, to leave out what cannot end:
    matrices: float  # M x M matrices alive at once
    floors: float  # its time in times of the floor
    cpu_dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    gpu_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    mode: str = "forward+backward"
    expected: Callable[..., list[Tensor]] = expected  # of a Batch and a dtype: its own definition
    needs_small_batch: bool = True  # `expected` makes M x M matrices
    module: str = "torch"  # that must be there; or "module:name"
    keeps_memory: bool = False  # what a step takes, it holds from the time that it is prepared
    pairs_only: bool = False  # its arguments say no more than that row n of one view belongs to row n of another
    cubes: float = 0  # M x M x M arrays alive at once

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def is_foreign(self) -> bool:
        """Neither ours nor PyTorch's."""
        return not self.is_ours and self.module.split(".")[0].split(":")[0] != "torch"

    @property
    def backend(self) -> str | None:
        """Ours on a GPU."""
        return ("cuda" if self.name.startswith(OURS_IN_CUDA) else "triton") if self.is_ours else None

    def bytes_needed(self, m: int, d: int, dtype: torch.dtype) -> float:
        return ((self.cubes * m + self.matrices) * m + 8 * d) * m * dtype.itemsize

    def dtypes(self, device: str) -> tuple[torch.dtype, ...]:
        return self.cpu_dtypes if device == "cpu" else self.gpu_dtypes
