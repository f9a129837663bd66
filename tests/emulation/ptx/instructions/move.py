"""Copies between registers, packing and unpacking, and conversion of addresses between spaces."""

import numpy as np

from ..active import Active
from ..errors import PTXError
from ..machine import LOCAL_WINDOW, SHARED_WINDOW, Machine
from ..syntax import Discard, Instruction, Tuple
from .registry import Execute, operation

_WINDOWS = {
    "shared": SHARED_WINDOW,
    "shared::cta": SHARED_WINDOW,
    "local": LOCAL_WINDOW,
    "global": 0,
    "const": 0,
}


@operation("mov")
def move(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, value = instruction.operands
    if isinstance(to, Tuple):
        return _unpack(machine, to, value, type_name)
    if isinstance(value, Tuple):
        return _pack(machine, to, value, type_name)
    out, value = machine.destination(to, type_name), machine.source(value, type_name)
    return lambda active: np.copyto(out, value, where=active.where)


def _pack(machine: Machine, to, value: Tuple, type_name: str) -> Execute:
    parts = machine.parts(machine.destination(to, type_name), len(value.elements))
    values = [machine.source(element, f"b{parts[0].itemsize * 8}") for element in value.elements]

    def execute(active: Active) -> None:
        # all values are taken before any is written: the result may be one of them
        for part, half in zip(parts, [half.copy() for half in values], strict=True):
            np.copyto(part, half, where=active.where)

    return execute


def _unpack(machine: Machine, to: Tuple, value, type_name: str) -> Execute:
    parts = machine.parts(machine.source(value, type_name), len(to.elements))
    outs = [machine.destination(element, f"b{parts[0].itemsize * 8}") for element in to.elements]
    pairs = [
        (out, part)
        for out, part, element in zip(outs, parts, to.elements, strict=True)
        if not isinstance(element, Discard)
    ]

    def execute(active: Active) -> None:
        for out, part in pairs:
            np.copyto(out, part, where=active.where)

    return execute


@operation("cvta", flags="to " + " ".join(_WINDOWS))
def convert_address(machine: Machine, instruction: Instruction) -> Execute:
    """To generic addresses, or back with `.to`. Global addresses are generic ones as they stand."""
    (type_name,) = instruction.types
    if type_name != "u64":
        raise PTXError("only 64-bit addresses are supported")
    to, address = instruction.operands
    window = np.uint64(_WINDOWS[instruction.flag_among(*_WINDOWS)])
    out, address = machine.destination(to, "u64"), machine.source(address, "u64")
    ufunc = np.subtract if "to" in instruction.flags else np.add
    return lambda active: ufunc(address, window, out=out, where=active.where)
