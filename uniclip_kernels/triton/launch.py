"""The one place through which kernels are reached, so that tests can run them elsewhere than on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from . import tuning


class Launcher:
    """Launches on the device of the first argument and on PyTorch's current stream there."""

    def __call__(self, kernel: triton.JITFunction, grid: Sequence[int], *args, **meta) -> None:
        """Run a kernel; an empty grid does nothing."""
        if 0 not in grid:
            with torch.cuda.device(args[0].device):
                kernel[tuple(grid)](*args, **meta)

    def tile_kernel(self, kernel: triton.JITFunction, grid: Sequence[int], rows: Tensor, *args, **meta) -> None:
        """Run a kernel over tiles of similarities of ``rows`` in the configuration that suits their dtype."""
        kernel, configuration = self.configured(kernel, rows)
        self(kernel, grid, rows, *args, **meta, **configuration)

    def configured(self, kernel: triton.JITFunction, rows: Tensor) -> tuple[triton.JITFunction, dict]:
        """The kernel to launch, and what remains to be said of its configuration."""
        arch = tuning.architecture(rows.device)
        precision = {"PRECISION": tuning.precision(arch, rows.dtype)}
        if tuning.autotune_enabled():
            return tuning.tuned(kernel, arch, rows.dtype), precision
        return kernel, precision | tuning.configurations(kernel, arch, rows.dtype)[0]
