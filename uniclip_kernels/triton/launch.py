"""The one place through which kernels are reached, so that tests can run them elsewhere than on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning


class Launcher:
    """Launches on the device of the first tensor and on PyTorch's current stream there."""

    def __call__(self, kernel: triton.JITFunction, grid: Sequence[int], *args, **meta) -> None:
        """Run a kernel; an empty grid does nothing."""
        if 0 not in grid:
            with torch.cuda.device(next(arg.device for arg in args if isinstance(arg, Tensor))):
                kernel[tuple(grid)](*args, **meta)

    def tile_kernel(
        self, kernel: triton.JITFunction, grid: Sequence[int], rows: Sequence[Tensor], *args, BLOCK: int, **meta
    ) -> None:
        """Run a kernel over tiles of similarities of ``rows`` in the configuration that suits their dtype."""
        configuration = self.configuration(kernel, rows[0])
        if configuration["DESCRIPTORS"]:
            rows = [TensorDescriptor.from_tensor(r, [BLOCK, configuration["BLOCK_D"]]) for r in rows]
        self(kernel, grid, *rows, *args, BLOCK=BLOCK, **meta, **configuration)

    def configuration(self, kernel: triton.JITFunction, rows: Tensor) -> dict:
        arch = tuning.architecture(rows.device)
        return tuning.configurations(kernel, arch, rows.dtype)[0] | {"PRECISION": tuning.precision(arch, rows.dtype)}
