"""Operations on bit patterns."""

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Immediate, Instruction
from .registry import Execute, operation

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.bitwise_not}


@operation(*_LOGIC, on="integer")
def logic(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, *operands = instruction.operands
    ufunc, out = _LOGIC[instruction.opcode], machine.destination(to, type_name)
    sources = [machine.source(operand, type_name) for operand in operands]
    if len(sources) != ufunc.nin:
        raise PTXError(f"{instruction.opcode} takes {ufunc.nin} operands")
    return lambda active: ufunc(*sources, out=out, where=active.where)


@operation("shl", "shr", on="integer")
def shift(machine: Machine, instruction: Instruction) -> Execute:
    """Shifts by the width or more leave zero, or copies of the sign."""
    (type_name,) = instruction.types
    to, value, amount = instruction.operands
    out = machine.destination(to, type_name)
    value, amount = machine.source(value, type_name), machine.source(amount, "u32")
    ufunc = np.left_shift if instruction.opcode == "shl" else np.right_shift
    width = types.bits(type_name)
    signed = ufunc is np.right_shift and type_name[0] == "s"

    if amount.strides == (0,) and amount[0] < width:
        by_constant = np.broadcast_to(amount.astype(value.dtype), value.shape)
        return lambda active: ufunc(value, by_constant, out=out, where=active.where)

    def execute(active: Active) -> None:
        shifted = ufunc(value, np.minimum(amount, width - 1).astype(value.dtype))
        if not signed:
            shifted[amount >= width] = 0
        np.copyto(out, shifted, where=active.where)

    return execute


@operation("shf", flags="l r wrap clamp")
def funnel_shift(machine: Machine, instruction: Instruction) -> Execute:
    """Shifts the 64 bits `high:low` and keeps the upper half of them (left) or the lower half (right)."""
    to, low, high, amount = instruction.operands
    out = machine.destination(to, "b32")
    low, high, amount = (machine.source(operand, "u32") for operand in (low, high, amount))
    left, wrap = "l" in instruction.flags, "wrap" in instruction.flags

    def execute(active: Active) -> None:
        both = high.astype(np.uint64) << np.uint64(32) | low
        by = (amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        shifted = both << by >> np.uint64(32) if left else both >> by
        np.copyto(out, shifted, where=active.where, casting="same_kind")

    return execute


@operation("lop3", on="integer")
def logic_of_three(machine: Machine, instruction: Instruction) -> Execute:
    """Any function of three bits; bit 4a + 2b + c of the table is its value."""
    to, *operands, table = instruction.operands
    if not isinstance(table, Immediate):
        raise PTXError("lop3 needs an immediate table")
    out = machine.destination(to, "b32")
    sources = [machine.source(operand, "b32") for operand in operands]

    def execute(active: Active) -> None:
        value = np.zeros(machine.lane_count, np.uint32)
        for row in range(8):
            if table.value >> row & 1:
                a, b, c = (
                    source if row >> bit & 1 else ~source for source, bit in zip(sources, (2, 1, 0), strict=True)
                )
                value |= a & b & c
        np.copyto(out, value, where=active.where)

    return execute


@operation("prmt", flags="f4e b4e rc8 ecl ecr rc16")
def permute_bytes(machine: Machine, instruction: Instruction) -> Execute:
    """Each nibble of the selector picks one of eight bytes, or copies of its sign if the nibble's top bit is set."""
    if instruction.flags:
        raise PTXError("prmt modes are not supported")
    to, *operands = instruction.operands
    out = machine.parts(machine.destination(to, "b32"), 4)
    low, high, selector = (machine.source(operand, "b32") for operand in operands)
    pool = [*machine.parts(low, 4), *machine.parts(high, 4)]

    def execute(active: Active) -> None:
        choices = np.stack(pool)
        lanes = np.arange(machine.lane_count)
        picked = []
        for position in range(4):
            nibble = selector >> np.uint32(4 * position) & np.uint32(15)
            byte = choices[nibble & np.uint32(7), lanes]
            sign = np.where(byte & np.uint8(0x80), np.uint8(0xFF), np.uint8(0))
            picked.append(np.where(nibble & np.uint32(8), sign, byte))
        for part, byte in zip(out, picked, strict=True):
            np.copyto(part, byte, where=active.where)

    return execute


@operation("bfe", on="integer")
def extract_field(machine: Machine, instruction: Instruction) -> Execute:
    """Bits [start, start + length), sign-extended for signed types; beyond the top come copies of the sign, or 0."""
    (type_name,) = instruction.types
    to, value, start, length = instruction.operands
    out = machine.destination(to, type_name)
    value = machine.source(value, type_name)
    start, length = machine.source(start, "u32"), machine.source(length, "u32")
    width, wide = types.bits(type_name), np.int64 if type_name[0] == "s" else np.uint64

    def execute(active: Active) -> None:
        first = (start & np.uint32(255)).astype(wide)
        count = np.minimum((length & np.uint32(255)).astype(wide), wide(width))
        field = value.astype(wide) >> np.minimum(first, wide(width - 1))
        if wide is np.uint64:
            field = np.where(first >= width, wide(0), field)
        unused = np.where(count == 0, wide(63), wide(64) - count)  # drop the upper bits, keep the field's own sign
        field = np.where(count == 0, wide(0), field << unused >> unused)
        np.copyto(out, field.astype(out.dtype), where=active.where)

    return execute


@operation("bfi", on="integer")
def insert_field(machine: Machine, instruction: Instruction) -> Execute:
    """Puts the low `length` bits of the first operand into the second one at `start`."""
    (type_name,) = instruction.types
    to, field, base, start, length = instruction.operands
    out = machine.destination(to, type_name)
    field, base = machine.source(field, type_name), machine.source(base, type_name)
    start, length = machine.source(start, "u32"), machine.source(length, "u32")
    width = types.bits(type_name)

    def execute(active: Active) -> None:
        first = (start & np.uint32(255)).astype(np.uint64)
        count = (length & np.uint32(255)).astype(np.uint64)
        ones = np.where(count >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(count, 63)) - np.uint64(1))
        shift = np.minimum(first, np.uint64(63))
        mask = np.where(first >= width, np.uint64(0), ones << shift)
        merged = (base & ~mask) | (field.astype(np.uint64) << shift & mask)
        np.copyto(out, merged, where=active.where, casting="same_kind")

    return execute


@operation("popc", "clz", "bfind", "brev", on="integer", flags="shiftamt")
def count_bits(machine: Machine, instruction: Instruction) -> Execute:
    """Number of ones, of leading zeros, position of the highest one, bits in reverse.

    If there is no highest one, bfind yields all ones; with .shiftamt it counts from the top.
    """
    (type_name,) = instruction.types
    width = types.bits(type_name)
    if instruction.opcode == "bfind" and type_name[0] == "s":
        raise PTXError("bfind of signed types is not supported")
    to, operand = instruction.operands
    out = machine.destination(to, type_name if instruction.opcode == "brev" else "u32")
    value = machine.source(operand, f"u{width}")

    def execute(active: Active) -> None:
        digits = np.unpackbits(value.byteswap().view(np.uint8).reshape(-1, width // 8), axis=1)  # highest first
        if instruction.opcode == "popc":
            result = digits.sum(axis=1)
        elif instruction.opcode == "brev":
            result = np.packbits(digits[:, ::-1], axis=1).view(value.dtype).byteswap().reshape(-1)
        else:
            zeros = np.where(digits.any(axis=1), digits.argmax(axis=1), width)
            if instruction.opcode == "clz":
                result = zeros
            elif instruction.flags:
                result = np.where(zeros == width, -1, zeros)
            else:
                result = width - 1 - zeros
        np.copyto(out, result.astype(out.dtype), where=active.where)

    return execute
