"""The state of a chunk of the grid: lanes, registers and memory; and operands as the arrays that hold their values.

A chunk is a number of blocks. Each block takes a whole number of warps of lanes; lanes beyond its last thread, and
those of blocks beyond the end of the grid, are dead from the start. All that does not change from launch to launch is
bound once, so a machine can be used again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from . import types
from .active import Active
from .copies import CopyQueue
from .errors import PTXError
from .memory import GlobalMemory, PrivateMemory, map_variables
from .syntax import Address, Discard, Immediate, Kernel, Negated, Register, Special, Symbol

SHARED_WINDOW, LOCAL_WINDOW = 1 << 56, 1 << 57  # where generic addresses see the two
_DYNAMIC_SHARED_ALIGNMENT = 16

Dim3 = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """What differs from one launch of a kernel to the next; `parameters` holds the bytes of each kernel parameter."""

    grid: Dim3
    memory: GlobalMemory
    parameters: dict[str, bytes]


class Machine:
    """Room for a number of blocks of `block` threads.

    `shared_cell` is the width of the narrowest access to shared memory if races in it are to be looked for, else None.
    """

    launch: Launch | None = None

    def __init__(self, kernel: Kernel, block: Dim3, blocks: int, shared_bytes: int, shared_cell: int | None):
        self.kernel, self.blocks = kernel, blocks
        self.threads = prod(block)
        self.lanes_per_block = -(-self.threads // 32) * 32
        self.lane_count = blocks * self.lanes_per_block
        lane = np.arange(self.lane_count)
        self.block_of_lane, self.thread_of_lane = np.divmod(lane, self.lanes_per_block)
        self.lane_id = (lane % 32).astype(np.uint32)
        self._registers = self._allocate_registers()
        self._special = self._special_registers(block, shared_bytes)
        self._addresses = map_variables(GlobalMemory(), kernel)  # the same in every launch
        shared_size, local_size = self._place_variables(shared_bytes)
        self.shared = PrivateMemory("shared", shared_size, self.block_of_lane, shared_cell)
        self.local = PrivateMemory("local", local_size, lane)
        self.copies = CopyQueue(self.shared, self.lane_count)

    def start(self, launch: Launch, first_block: int) -> np.ndarray:
        """Makes ready for the blocks of a launch from `first_block` on; returns which lanes are alive."""
        block = self.block_of_lane + first_block
        for axis, name in enumerate("xyz"):
            self._special[f"nctaid.{name}"].fill(launch.grid[axis])
            self._special[f"ctaid.{name}"][:] = block // prod(launch.grid[:axis]) % launch.grid[axis]
        self.launch = launch
        launch.memory.block_of_lane = block
        self.shared.reset()
        self.local.reset()
        self.copies.reset()
        return (self.thread_of_lane < self.threads) & (block < prod(launch.grid))

    def source(self, operand, type_name: str) -> np.ndarray:
        """One value for each lane; a view of the register, so that it is always up to date."""
        match operand:
            case Register(name):
                return self._low_bits(self._registers[name], type_name)
            case Special(name):
                return self._low_bits(self._special[name], type_name)
            case Immediate():
                return self._constant(immediate_pattern(operand, type_name), type_name)
            case Symbol(name):
                if name not in self._addresses:
                    raise PTXError(f"unknown symbol {name}")
                return self._constant(self._addresses[name], type_name)
        raise PTXError(f"an operand that is no {type_name} value")

    def predicate(self, operand) -> Callable[[], np.ndarray]:
        """Reads `%p` or `!%p`."""
        if isinstance(operand, Negated):
            register = self.source(operand.register, "pred")
            return lambda: ~register
        register = self.source(operand, "pred")
        return lambda: register

    def destination(self, operand, type_name: str) -> np.ndarray:
        """A view of a register to write to; in one wider than the type, values get sign- or zero-extended."""
        dtype = types.dtype(type_name)
        if isinstance(operand, Discard):
            return np.empty(self.lane_count, dtype)
        if not isinstance(operand, Register):
            raise PTXError("the result needs a register")
        register = self._registers[operand.name]
        if "b" in (register.dtype.kind, dtype.kind):
            if register.dtype != dtype:
                raise PTXError("predicates and numbers do not mix")
            return register
        if register.itemsize == dtype.itemsize:
            return register.view(dtype)
        if register.itemsize < dtype.itemsize or dtype.kind == "f":
            raise PTXError(f"register %{operand.name.lstrip('%')} does not fit type {type_name}")
        return register.view(np.dtype(f"{dtype.kind}{register.itemsize}"))

    def parts(self, register: np.ndarray, count: int) -> list[np.ndarray]:
        """Views of the equal parts of a register, least significant first."""
        if register.strides == (0,):  # a constant
            register = np.ascontiguousarray(register)
        part_bits = register.itemsize * 8 // count
        if part_bits not in types.UNSIGNED or not register.flags.c_contiguous:
            raise PTXError(f"an operand that cannot be split in {count}")
        view = register.view(types.UNSIGNED[part_bits])
        return [view[part::count] for part in range(count)]

    def address(self, operand) -> Callable[[Active], np.ndarray]:
        """Computes int64 addresses for the active lanes."""
        if not isinstance(operand, Address):
            raise PTXError("expected an address in brackets")
        if isinstance(operand.base, Register):
            base = self._registers[operand.base.name]
        else:
            base = self.source(operand.base, "u64")
        return lambda active: active.take(base).astype(np.int64) + operand.offset

    def _allocate_registers(self) -> dict[str, np.ndarray]:
        """One row of a table for each register, a table for each width."""
        by_type: dict[str, list[str]] = {}
        for name, type_name in self.kernel.registers.items():
            by_type.setdefault(type_name, []).append(name)
        found = {}
        for type_name, names in by_type.items():
            if type_name == "pred":
                table = np.zeros((len(names), self.lane_count), bool)
            else:
                dtype = np.dtype(types.UNSIGNED[types.bits(type_name)])
                table = np.full((len(names), self.lane_count), np.iinfo(dtype).max, dtype)
            found.update(zip(names, table, strict=True))
        return found

    def _special_registers(self, block: Dim3, shared_bytes: int) -> dict[str, np.ndarray]:
        def constant(value: int) -> np.ndarray:
            return np.full(self.lane_count, value, np.uint32)

        own = np.uint32(1) << self.lane_id
        found = {
            "laneid": self.lane_id,
            "warpid": (self.thread_of_lane // 32).astype(np.uint32),
            "nwarpid": constant(self.lanes_per_block // 32),
            "dynamic_smem_size": constant(shared_bytes),
            "lanemask_eq": own,
            "lanemask_lt": own - np.uint32(1),
            "lanemask_le": own | (own - np.uint32(1)),
            "lanemask_gt": ~(own | (own - np.uint32(1))),
            "lanemask_ge": ~(own - np.uint32(1)),
        }
        for axis, name in enumerate("xyz"):
            index = self.thread_of_lane // prod(block[:axis]) % block[axis]
            found[f"tid.{name}"] = index.astype(np.uint32)
            found[f"ntid.{name}"] = constant(block[axis])
            found[f"ctaid.{name}"], found[f"nctaid.{name}"] = constant(0), constant(0)  # set by `start`
        return found

    def _place_variables(self, shared_bytes: int) -> tuple[int, int]:
        """Gives shared and local variables their addresses; returns the sizes of both memories."""
        sizes = {"shared": 0, "local": 0}
        dynamic = []
        for variable in self.kernel.variables:
            if variable.space == "shared" and variable.size == 0:
                dynamic.append(variable)
            elif variable.space in sizes:
                start = -(-sizes[variable.space] // variable.alignment) * variable.alignment
                self._addresses[variable.name] = start
                sizes[variable.space] = start + variable.size
        if dynamic:
            alignment = max(_DYNAMIC_SHARED_ALIGNMENT, *(variable.alignment for variable in dynamic))
            start = -(-sizes["shared"] // alignment) * alignment
            self._addresses.update({variable.name: start for variable in dynamic})
            sizes["shared"] = start + shared_bytes
        return sizes["shared"], sizes["local"]

    def _low_bits(self, register: np.ndarray, type_name: str) -> np.ndarray:
        dtype = types.dtype(type_name)
        if (register.dtype.kind == "b") != (dtype.kind == "b"):
            raise PTXError("predicates and numbers do not mix")
        if register.itemsize < dtype.itemsize:
            raise PTXError(f"the register is too narrow for type {type_name}")
        view = register.view(dtype)
        return view if register.itemsize == dtype.itemsize else view[:: register.itemsize // dtype.itemsize]

    def _constant(self, pattern: int, type_name: str) -> np.ndarray:
        dtype = types.dtype(type_name)
        if dtype.kind == "b":
            value = np.array(pattern != 0)
        else:
            bits = dtype.itemsize * 8
            value = np.array(pattern % (1 << bits), types.UNSIGNED[bits]).view(dtype)
        return np.ndarray(self.lane_count, dtype, value, strides=(0,))  # np.broadcast_to, ten times as fast


def immediate_pattern(operand: Immediate, type_name: str) -> int:
    """The bits of an immediate read as a type."""
    value, notation = operand.value, operand.notation
    if notation == "f32" and type_name == "f64":
        return int(np.array(value, np.uint32).view(np.float32).astype(np.float64).view(np.uint64))
    if notation != "decimal":
        return value
    dtype = types.dtype(type_name)
    if dtype.kind != "f":
        raise PTXError(f"a decimal fraction as {type_name}")
    return int(np.array(value, dtype).view(types.UNSIGNED[dtype.itemsize * 8]))
