"""The Triton backend without a GPU: the whole engine on CPU tensors, with only the launches of kernels replaced.

with installed("triton", interpreted()):  # TRITON_INTERPRET=1 must be set before Triton is first imported
    uniclip_kernels.mp_nce(..., backend="triton")
with installed("triton", executed_ptx()):  # the PTX that Triton emits for sm_80
    ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import triton
from torch import Tensor

from uniclip_kernels.triton import TritonBackend, tuning
from uniclip_kernels.triton.launch import Launcher


class _Elsewhere(Launcher):
    """Runs ``stand_in(kernel)[grid](...)``, in the configurations for a part."""

    def __init__(self, stand_in: Callable, arch: str):
        self.stand_in = functools.cache(stand_in)
        self.arch = arch

    def __call__(self, kernel: triton.JITFunction, grid: Sequence[int], *args, **meta) -> None:
        if 0 not in grid:
            self.stand_in(kernel)[tuple(grid)](*args, **meta)

    def configuration(self, kernel: triton.JITFunction, rows: Tensor) -> dict:
        chosen = tuning.configurations(kernel, self.arch, rows.dtype)[0]
        return chosen | {"PRECISION": tuning.precision(self.arch, rows.dtype)}


def interpreted(arch: str = "80", **options) -> TritonBackend:
    """Kernels run by Triton's interpreter, in the configurations for ``arch``."""
    from . import interpreter

    interpreter.repair()
    return TritonBackend("cpu", _Elsewhere(lambda kernel: kernel, arch), **options)


def executed_ptx(check: bool = True, **options) -> TritonBackend:
    """Kernels compiled for sm_80 and their PTX executed; ``check`` looks for data races too."""
    from .ptx.triton import PTXKernel

    return TritonBackend("cpu", _Elsewhere(lambda kernel: PTXKernel(kernel, check), "80"), **options)
