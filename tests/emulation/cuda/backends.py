"""The CUDA backend without a GPU: the whole engine on CPU tensors, with only the execution of kernels replaced.

with installed("cuda", emulated()):  # the kernels' sources, built by the C++ compiler
    uniclip_kernels.mp_nce(..., backend="cuda")
with installed("cuda", executed_ptx(80)):  # the PTX that nvcc emits for them
    ...
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from tests.emulation import ptx
from uniclip_kernels.cuda import CUDABackend

from . import build


def emulated(thread_order: int = 0, **options) -> CUDABackend:
    """Kernels run by the host emulation; ``thread_order``: 0 forwards, 1 backwards, more is the seed of a shuffle."""
    _library().emulation_set_thread_order(thread_order)
    _library().emulation_set_launch_hook(None)
    return CUDABackend("cpu", getattr(torch.ops, build.LIBRARY), **options)


def executed_ptx(architecture: int, check: bool = True, **options) -> CUDABackend:
    """Launchers compiled for the host, kernels as PTX; ``check`` looks for data races too."""
    return CUDABackend("cpu", _PTXOperators(architecture, check), **options)


@functools.cache
def _library() -> ctypes.CDLL:
    path = build.library()
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


class _Argument(ctypes.Structure):
    """emulation::Argument"""

    _fields_ = (("value", ctypes.c_void_p), ("bytes", ctypes.c_int64))


_HOOK = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.POINTER(_Argument),
)


class _PTXOperators:
    """Stands in for ``torch.ops``: runs an operator's launcher, and the PTX of the kernel that it launches."""

    def __init__(self, architecture: int, check: bool):
        self._sources, self._check = build.ptx(architecture), check
        self._hook = _HOOK(self._launch)
        self._tensors: list[Tensor] = []
        self._error: Exception | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        _library()
        operator = getattr(getattr(torch.ops, build.LIBRARY), name)

        def call(*args) -> None:
            self._tensors = [a for a in args if isinstance(a, Tensor)]
            self._error = None
            _library().emulation_set_launch_hook(self._hook)
            try:
                operator(*args)
            finally:
                _library().emulation_set_launch_hook(None)
            if self._error is not None:
                raise self._error

        return call

    def _launch(self, kernel, blocks, threads, shared_bytes, count, arguments) -> None:
        """Errors are kept for the caller: an exception cannot pass through C++."""
        try:
            name = kernel.decode()
            text = next(t for t in self._sources.values() if f".entry {name}(" in t)
            values = [self._value(arguments[i]) for i in range(count)]
            ptx.run(text, name, (blocks,), (threads,), values, shared_bytes, self._check)
        except Exception as error:
            self._error = error

    def _value(self, argument: _Argument) -> tuple[Tensor | bytes, ...]:
        """Words of the argument, with a tensor in place of a pointer into one of the operator's."""
        value = ctypes.string_at(argument.value, argument.bytes)
        return tuple(self._tensor_or(value[at : at + 8]) for at in range(0, len(value), 8))

    def _tensor_or(self, word: bytes) -> Tensor | bytes:
        for tensor in self._tensors:
            storage = tensor.untyped_storage()
            offset = int.from_bytes(word, "little") - storage.data_ptr()
            if 0 <= offset < storage.nbytes():
                return torch.empty(0, dtype=torch.uint8).set_(storage)[offset:]
        return word
