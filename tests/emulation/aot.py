"""The Triton kernels compiled ahead of time, for parts that are not here, just as the engine would launch them there."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime import jit

import uniclip_kernels
from uniclip_kernels.triton import TritonBackend, tuning
from uniclip_kernels.triton.launch import Launcher
from uniclip_kernels.triton.layout import layout_kernel

from . import machine_code
from .installed import installed
from .machine_code import Code

_CACHE = Path(__file__).resolve().parents[2] / "build" / "triton-cache"
_VARIANTS = ("DIAGONAL", "SIGMOID", "SOFTMAX")

#: Every kernel that a step of training launches, in all its variants.
TILE_KERNELS = (
    "similarity_lse_kernel",
    "similarity_lse_kernel SIGMOID",
    "similarity_lse_kernel DIAGONAL",
    "similarity_lse_kernel DIAGONAL SIGMOID",
    "similarity_grad_kernel",
    "similarity_grad_kernel SIGMOID",
    "similarity_grad_kernel DIAGONAL",
    "similarity_grad_kernel DIAGONAL SIGMOID",
    "positives_forward_kernel",
    "positives_forward_kernel SOFTMAX",
    "positives_grad_kernel",
    "positives_grad_kernel SOFTMAX",
    "positives_grad_kernel DIAGONAL",
    "positives_grad_kernel DIAGONAL SOFTMAX",
    "similarity_matrix_kernel",
)
ROW_KERNELS = (
    "gather_rows_kernel",
    "scatter_rows_kernel",
    "similarity_matrix_grad_kernel",
)
SUM_KERNELS = (  # which the dtype of the rows does not concern
    "check_values_kernel",
    "number_samples_kernel",
    "layout_kernel",
    "merge_kernel",
    "merge_kernel SIGMOID",
    "sum_pairs_kernel",
    "sum_pairs_kernel DIAGONAL",
)


@dataclass(frozen=True)
class Launch:
    kernel: triton.JITFunction
    args: tuple
    meta: dict
    programs: int

    @property
    def name(self) -> str:
        return " ".join([self.kernel.__name__, *(v for v in _VARIANTS if self.meta.get(v))])

    def key(self, arch: str) -> str:
        """What Triton caches compiled kernels by."""
        _, specialization, options = self._bind(arch)
        return jit.compute_cache_key({}, specialization, options)

    def compile(self, arch: str) -> CompiledKernel:
        os.environ.setdefault("TRITON_CACHE_DIR", str(_CACHE))
        values, specialization, options = self._bind(arch)
        target, compiler = _target(arch)
        options, *source = self.kernel._pack_args(compiler, self.meta, values, specialization, options)
        return triton.compile(ASTSource(self.kernel, *source), target=target, options=options.__dict__)

    def _bind(self, arch: str) -> tuple[dict, list, dict]:
        return _binder(self.kernel, arch)(*self.args, **self.meta)


@functools.cache
def _target(arch: str) -> tuple[GPUTarget, object]:
    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch), 32)
    return target, make_backend(target)


@functools.cache
def _binder(kernel: triton.JITFunction, arch: str):
    return jit.create_function_from_signature(kernel.signature, kernel.params, _target(arch)[1])


class Recorder(Launcher):
    """Keeps what would be launched on a part of an architecture, and launches nothing."""

    def __init__(self, arch: str):
        self.arch = arch
        self.launches: list[Launch] = []

    def __call__(self, kernel: triton.JITFunction, grid: Sequence[int], *args, **meta) -> None:
        if 0 not in grid:
            self.launches.append(Launch(kernel, args, meta | {"debug": False}, math.prod(grid)))
        if kernel is layout_kernel:  # by which the engine picks rows itself
            for name, arg in zip(kernel.arg_names, args, strict=False):
                if name in ("order", "slot"):
                    arg.zero_()

    def configuration(self, kernel: triton.JITFunction, rows: Tensor) -> dict:
        chosen = tuning.configurations(kernel, self.arch, rows.dtype)[0]
        return chosen | {"PRECISION": tuning.precision(self.arch, rows.dtype)}


def launches(arch: str, dtype: torch.dtype, d: int = 512, m: int = 300) -> list[Launch]:
    """Those of all functions, forward and backward, of m rows in tiles that each are a rectangle of their own.

    Of the objectives three have all variants of the kernels between them.
    """
    recorder = Recorder(arch)
    backend = TritonBackend("cpu", recorder, workspace_bytes=TritonBackend.block**2 * dtype.itemsize)
    z = torch.zeros(m, d, dtype=dtype, requires_grad=True)
    domains = torch.arange(m) % 2
    tables = [torch.ones(2, 2, requires_grad=True) for _ in range(2)]
    options = {"temperature": tables[0], "offset": tables[1], "backend": "triton"}
    mask = torch.ones(2, 2, dtype=torch.bool)
    with installed("triton", backend):
        for objective in (uniclip_kernels.mp_nce, uniclip_kernels.sup_con, uniclip_kernels.siglip):
            objective(z, torch.arange(m) // 2, domains, domain_mask=mask, **options).backward()
        uniclip_kernels.domain_similarity(z, z, domains, domains, **options).sum().backward()
    return recorder.launches


@functools.cache
def _by_name(arch: str, dtype: torch.dtype, d: int) -> dict[str, Launch]:
    return {launch.name: launch for launch in launches(arch, dtype, d)}


def compile_kernel(name: str, arch: str, dtype: torch.dtype, d: int = 512, **overrides: int) -> CompiledKernel:
    """A kernel by its name above, in the configuration that comes first for ``arch`` unless overridden."""
    launch = _by_name(arch, dtype, d)[name]
    return replace(launch, meta=launch.meta | overrides).compile(arch)


def code(compiled: CompiledKernel) -> Code:
    """The machine code of a kernel for CUDA."""
    (found,) = machine_code.read(compiled.asm["cubin"]).values()
    return replace(found, threads=compiled.metadata.num_warps * 32, shared=compiled.metadata.shared)
