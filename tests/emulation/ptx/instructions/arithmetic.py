"""Integer arithmetic."""

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Instruction
from .registry import Execute, operation

_UFUNCS = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}


@operation("add", "sub", "min", "max", on="integer")
def binary(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, left, right = instruction.operands
    ufunc = _UFUNCS[instruction.opcode]
    out = machine.destination(to, type_name)
    left, right = machine.source(left, type_name), machine.source(right, type_name)
    return lambda active: ufunc(left, right, out=out, where=active.where)


@operation("neg", "abs", on="integer")
def unary(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, value = instruction.operands
    ufunc = {"neg": np.negative, "abs": np.abs}[instruction.opcode]
    out, value = machine.destination(to, type_name), machine.source(value, type_name)
    return lambda active: ufunc(value, out=out, where=active.where)


@operation("mul", "mad", on="integer", flags="lo hi wide")
def multiply(machine: Machine, instruction: Instruction) -> Execute:
    """The low half, the high half or all of a product; mad adds a third operand of the result's width."""
    (type_name,) = instruction.types
    result_type = f"{type_name[0]}{types.bits(type_name) * 2}" if "wide" in instruction.flags else type_name
    to, left, right, *addend = instruction.operands
    if len(addend) != (instruction.opcode == "mad") or not instruction.flags:
        raise PTXError("mul and mad need .lo, .hi or .wide, and two or three operands")
    out = machine.destination(to, result_type)
    left, right = machine.source(left, type_name), machine.source(right, type_name)
    if "hi" in instruction.flags:
        product = _high_half
    else:
        dtype = types.dtype(result_type)

        def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            return np.multiply(left, right, dtype=dtype)

    if not addend:
        return lambda active: np.copyto(out, product(left, right), where=active.where)
    addend = machine.source(addend[0], result_type)
    return lambda active: np.add(product(left, right), addend, out=out, where=active.where)


def _high_half(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    width = left.itemsize * 8
    wide = np.dtype(f"{left.dtype.kind}8") if width < 64 else object  # Python's integers do not overflow
    return ((left.astype(wide) * right.astype(wide)) >> (wide.type(width) if width < 64 else width)).astype(left.dtype)


@operation("div", "rem", on="integer")
def divide(machine: Machine, instruction: Instruction) -> Execute:
    """Truncates towards zero; a quotient by zero has all bits set, as on NVIDIA's GPUs."""
    (type_name,) = instruction.types
    to, left, right = instruction.operands
    out = machine.destination(to, type_name)
    left, right = machine.source(left, type_name), machine.source(right, type_name)
    remainder = instruction.opcode == "rem"

    def execute(active: Active) -> None:
        by_zero = right == 0
        divisor = np.where(by_zero, right.dtype.type(1), right)
        rest = np.fmod(left, divisor)
        value = rest if remainder else (left - rest) // divisor
        undefined = left if remainder else np.array(-1).astype(left.dtype)
        np.copyto(out, np.where(by_zero, undefined, value), where=active.where)

    return execute
