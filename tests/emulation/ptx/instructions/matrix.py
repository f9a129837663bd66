"""Matrix instructions of a whole warp: mma.sync and ldmatrix."""

import re
from collections.abc import Callable

import numpy as np

from .. import fragments, types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Instruction, Tuple
from .registry import Execute, operation

_SHAPES = {"m16n8k16": ("bf16", "f16"), "m16n8k8": ("bf16", "f16", "tf32"), "m16n8k4": ("tf32",)}


@operation("mma", flags="sync aligned row col " + " ".join(_SHAPES))
def multiply_accumulate(machine: Machine, instruction: Instruction) -> Execute:
    """D = A·B + C, computed in float64 and rounded once."""
    d_type, a_type, b_type, c_type = instruction.types
    shape = instruction.flag_among(*_SHAPES)
    if shape is None or a_type not in _SHAPES[shape] or a_type != b_type:
        raise PTXError("unsupported shape or types")
    if {c_type, d_type} - {"f32", "f16"} or ("f16" in (c_type, d_type) and a_type != "f16"):
        raise PTXError("unsupported type of C or D")
    k, pack = int(re.search(r"k(\d+)", shape)[1]), 32 // types.bits(a_type)
    to, a, b, c = instruction.operands
    read_a = _matrix_reader(machine, a, a_type, fragments.a_layout(k, pack), (16, k))
    read_b = _matrix_reader(machine, b, b_type, fragments.b_layout(k, pack), (k, 8))
    read_c = _matrix_reader(machine, c, c_type, fragments.c_layout(32 // types.bits(c_type)), (16, 8))
    write_d = _matrix_writer(machine, to, d_type)

    def execute(active: Active) -> None:
        warps = slice(None) if active.complete else np.flatnonzero(active.mask[::32])
        write_d(np.matmul(read_a(warps), read_b(warps)) + read_c(warps), warps)

    return execute


def _registers(machine: Machine, operand, bind: Callable, pack: int, elements: int) -> list[np.ndarray]:
    """The registers of a fragment as arrays of shape (warps, 32 lanes)."""
    names = operand.elements if isinstance(operand, Tuple) else (operand,)
    if len(names) * pack * 32 != elements:
        raise PTXError(f"a fragment of {len(names)} registers for a matrix of {elements} elements")
    return [bind(name, "b32").reshape(-1, 32) for name in names]


def _matrix_reader(machine: Machine, operand, type_name: str, layout: np.ndarray, shape: tuple[int, int]) -> Callable:
    """A function from a selection of warps to their float64 matrices."""
    decode = {
        "bf16": types.bfloat16_to_float32,
        "f16": lambda pattern: pattern.view(np.float16),
        "tf32": types.truncate_to_tf32,
        "f32": lambda pattern: pattern.view(np.float32),
    }[type_name]
    bits = types.bits(type_name)
    registers = _registers(machine, operand, machine.source, 32 // bits, layout.size)

    def read(warps) -> np.ndarray:
        fragment = np.stack([register[warps] for register in registers], axis=1)
        elements = fragment.view(types.UNSIGNED[bits]).reshape(len(fragment), -1)
        return decode(elements[:, layout]).astype(np.float64).reshape(-1, *shape)

    return read


def _matrix_writer(machine: Machine, operand, type_name: str) -> Callable:
    """A function that stores 16×8 matrices to the registers of a selection of warps."""
    dtype = types.dtype(type_name)
    pack = 4 // dtype.itemsize
    layout = fragments.c_layout(pack)
    registers = _registers(machine, operand, machine.destination, pack, layout.size)

    def write(matrices: np.ndarray, warps) -> None:
        fragment = np.empty((len(matrices), layout.size), dtype)
        fragment[:, layout] = matrices.reshape(len(matrices), -1)
        words = fragment.view(np.uint32).reshape(len(matrices), len(registers), 32)
        for position, register in enumerate(registers):
            register[warps] = words[:, position]

    return write


@operation("ldmatrix", flags="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def load_matrix(machine: Machine, instruction: Instruction) -> Execute:
    """Loads 1, 2 or 4 matrices; lanes 8i … 8i+7 give the addresses of the rows of matrix i."""
    if instruction.types != ("b16",):
        raise PTXError("only matrices of 16-bit elements are supported")
    to, operand = instruction.operands
    count = int(instruction.flag_among("x1", "x2", "x4")[1:])
    transpose = "trans" in instruction.flags
    registers = _registers(machine, to, machine.destination, 1, count * 32)
    address = machine.address(operand)

    def execute(active: Active) -> None:
        warps = slice(None) if active.complete else np.flatnonzero(active.mask[::32])

        def row_lanes(values: np.ndarray) -> np.ndarray:
            return values.reshape(-1, 32)[:, : 8 * count].reshape(-1)

        words = machine.shared.load(row_lanes(address(active)), 32, 4, row_lanes(active.lanes))
        matrices = np.stack(words, axis=1).reshape(-1, count, 8, 4)
        for position, register in enumerate(registers):
            register[warps] = fragments.distribute_rows(matrices[:, position], transpose)

    return execute
