"""run(ptx_text, entry, grid, block, args): what cuLaunchKernel does, for buffers in host memory."""

import struct
from functools import lru_cache
from math import prod

import numpy as np
import torch

from . import types
from .errors import PTXError
from .machine import Dim3, Launch, Machine
from .memory import GlobalMemory, map_variables
from .parser import parse
from .program import Program, analyse
from .scheduler import Scheduler
from .syntax import Kernel, Parameter

_LANES_AT_ONCE = 2048  # threads executed together: enough to hide Python's overhead, few enough for the caches

Array = torch.Tensor | np.ndarray
Argument = Array | int | float | bytes | tuple[Array | bytes, ...]


def run(
    ptx_text: str,
    entry: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    args: list[Argument],
    shared_bytes: int = 0,
    check: bool = True,
) -> None:
    """Executes a kernel, all blocks of the grid.

    `entry` is the kernel's (mangled) name; `shared_bytes` counts dynamic shared memory only. A tensor stands for a
    pointer to its first element and may reach all of its storage; a numpy array must be contiguous. Stores change both
    in place. bytes stand for a struct passed by value, a tuple of them and of buffers for one that holds pointers.
    `check=False` leaves out the search for data races.

    Raises PTXError if the text cannot be executed, or the kernel does what the package's docstring lists.
    """
    program = _program(ptx_text, entry)
    kernel, grid, block = program.kernel, _three(grid), _three(block)
    threads = prod(block)
    if kernel.required_threads not in (None, threads):
        raise PTXError(f"kernel {entry} needs blocks of {kernel.required_threads} threads, not {threads}")
    if not 0 < threads <= 1024:
        raise PTXError(f"blocks of {threads} threads; 1 to 1024 are possible")
    if prod(grid) == 0:
        return
    memory = GlobalMemory(program.narrowest["global"] if check else None)
    map_variables(memory, kernel)
    launch = Launch(grid, memory, _encode_arguments(memory, kernel, args))
    blocks = min(prod(grid), max(1, _LANES_AT_ONCE // threads))
    with np.errstate(all="ignore"):
        _scheduler(ptx_text, entry, block, 1 << (blocks - 1).bit_length(), shared_bytes, check).run(launch)


@lru_cache(maxsize=32)
def _scheduler(ptx_text: str, entry: str, block: Dim3, blocks: int, shared_bytes: int, check: bool) -> Scheduler:
    """Binding a kernel can take longer than running it, so machines are kept."""
    program = _program(ptx_text, entry)
    cell = program.narrowest["shared"] if check else None
    return Scheduler(Machine(program.kernel, block, blocks, shared_bytes, cell), program)


@lru_cache(maxsize=256)
def _program(ptx_text: str, entry: str) -> Program:
    kernels = parse(ptx_text)
    if entry not in kernels:
        raise PTXError(f"no kernel {entry!r}; the module has {', '.join(kernels) or 'none'}")
    return analyse(kernels[entry])


def _three(extents: tuple[int, ...]) -> Dim3:
    return tuple([*extents, 1, 1][:3])


def _encode_arguments(memory: GlobalMemory, kernel: Kernel, args: list[Argument]) -> dict[str, bytes]:
    if len(args) != len(kernel.parameters):
        raise PTXError(f"kernel {kernel.name} has {len(kernel.parameters)} parameters, not {len(args)}")
    mapped: dict[int, int] = {}  # address of a buffer in host memory -> on the device

    def address(name: str, buffer: Array) -> int:
        start, content, offset = _buffer(buffer)
        if start not in mapped:
            mapped[start] = memory.map(f"the buffer of {name}", content)
        return mapped[start] + offset

    encoded = {}
    for parameter, argument in zip(kernel.parameters, args, strict=True):
        if isinstance(argument, Array):
            argument = address(parameter.name, argument)
        elif isinstance(argument, tuple):
            parts = (a if isinstance(a, bytes) else address(parameter.name, a).to_bytes(8, "little") for a in argument)
            argument = b"".join(parts)
        encoded[parameter.name] = _encode(parameter, argument)
    return encoded


def _buffer(argument: Array) -> tuple[int, np.ndarray, int]:
    """Where a buffer starts in host memory, its bytes, and where in it the argument points to."""
    if isinstance(argument, torch.Tensor):
        storage = argument.untyped_storage()
        content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        return storage.data_ptr(), content, argument.data_ptr() - storage.data_ptr()
    if not argument.flags.c_contiguous:
        raise PTXError("a numpy array has to be contiguous")
    return argument.ctypes.data, argument.reshape(-1).view(np.uint8), 0


def _encode(parameter: Parameter, argument: int | float | bytes) -> bytes:
    if isinstance(argument, bytes):
        if len(argument) != parameter.size:
            raise PTXError(f"{parameter.name} has {parameter.size} bytes, not {len(argument)}")
        return argument
    bits = types.bits(parameter.type)
    if parameter.size * 8 != bits:
        raise PTXError(f"{parameter.name} is a struct: pass its bytes")
    if parameter.type[0] == "f" or (parameter.type[0] == "b" and isinstance(argument, float)):
        return struct.pack({16: "e", 32: "f", 64: "d"}[bits], argument)
    if isinstance(argument, float) or not -(1 << bits - 1) <= argument < 1 << bits:
        raise PTXError(f"{parameter.name} is of type {parameter.type}, which cannot hold {argument}")
    return (int(argument) % (1 << bits)).to_bytes(bits // 8, "little")
