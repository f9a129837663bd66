"""Triton kernels without a GPU: compiled ahead of time for sm_80, and the PTX executed on CPU tensors."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime import jit

from .errors import PTXError
from .launch import run

_TARGET = GPUTarget("cuda", 80, 32)
_CACHE = Path(__file__).resolve().parents[3] / "build" / "triton-cache"

Grid = tuple[int, ...] | Callable[[dict], tuple[int, ...]]


class PTXKernel:
    """Stands in for a `triton.JITFunction`: `PTXKernel(fn)[grid](*args, **kwargs)` with CPU tensors.

    Calling convention, defaults and options (`num_warps`, `num_stages`, …) are Triton's, and so is the specialisation
    (integers equal to 1 become constants; divisibility by 16 of integers and pointers; int32 or int64 by value), since
    Triton's own functions compute it: what runs here is the very variant a GPU would be given. Compiled variants are
    kept in memory, and on disk in build/triton-cache unless TRITON_CACHE_DIR says otherwise.
    """

    def __init__(self, fn: triton.JITFunction, check: bool = True):
        if not isinstance(fn, triton.JITFunction):
            raise TypeError(
                f"fn has to be a triton.JITFunction, not {type(fn).__name__} "
                "(triton.jit makes an InterpretedFunction while TRITON_INTERPRET is set)"
            )
        self.fn, self.check = fn, check
        self.compiled: dict[str, CompiledKernel] = {}
        self._backend = make_backend(_TARGET)
        self._bind = jit.create_function_from_signature(fn.signature, fn.params, self._backend)
        self._keys: dict = {}

    def __getitem__(self, grid: Grid) -> Callable[..., CompiledKernel]:
        return partial(self.run, grid=grid)

    def run(self, *args, grid: Grid, **kwargs) -> CompiledKernel:
        """Launches; returns the compiled variant, whose `asm` and `metadata` tell what was executed."""
        kwargs["debug"] = kwargs.get("debug", self.fn.debug) or triton.knobs.runtime.debug
        values, specialization, options = self._bind(*args, **kwargs)
        key = jit.compute_cache_key(self._keys, specialization, options)
        if key not in self.compiled:
            self.compiled[key] = self._compile(kwargs, values, specialization, options)
        compiled = self.compiled[key]
        grid = grid(values) if callable(grid) else grid
        runtime_values = [
            value for value, (kind, *_) in zip(values.values(), specialization, strict=True) if kind != "constexpr"
        ]
        self._execute(compiled, grid, runtime_values)
        return compiled

    def _compile(self, kwargs: dict, values: dict, specialization: list, options: dict) -> CompiledKernel:
        options, signature, constexprs, attrs = self.fn._pack_args(
            self._backend, kwargs, values, specialization, options
        )
        if "TRITON_CACHE_DIR" not in os.environ:
            triton.knobs.cache.dir = str(_CACHE)
        source = ASTSource(self.fn, signature, constexprs, attrs)
        return triton.compile(source, target=_TARGET, options=options.__dict__)

    def _execute(self, compiled: CompiledKernel, grid: tuple[int, ...], values: list) -> None:
        metadata = compiled.metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise PTXError("kernels that need scratch memory are not supported")
        scratch = [0, 0]  # Triton's two hidden pointers
        threads = metadata.num_warps * 32
        run(
            compiled.asm["ptx"],
            metadata.name,
            grid,
            (threads,),
            [*values, *scratch],
            metadata.shared,
            self.check,
        )
