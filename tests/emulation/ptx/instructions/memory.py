"""Loads and stores."""

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Address, Instruction, Symbol, Tuple
from .registry import Execute, operation
from .spaces import SPACES, resolver

_FLAGS = SPACES + " v2 v4 v8 nc ca cg cs lu cv wb wt weak volatile relaxed acquire release cta gpu sys"


@operation("ld", flags=_FLAGS + " param")
def load(machine: Machine, instruction: Instruction) -> Execute:
    to, address = instruction.operands[:2]
    if "param" in instruction.flags:
        return _load_parameter(machine, instruction)
    (type_name,) = instruction.types
    bits, dtype = types.bits(type_name), types.dtype(type_name)
    outs = [machine.destination(element, type_name) for element in _elements(to, instruction)]
    resolve = resolver(machine, instruction, address)

    def execute(active: Active) -> None:
        memory, addresses = resolve(active)
        values = memory.load(addresses, bits, len(outs), active.lanes)
        for out, value in zip(outs, values, strict=True):
            active.put(out, value.view(dtype))

    return execute


def _load_parameter(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, address = instruction.operands
    if not (isinstance(address, Address) and isinstance(address.base, Symbol)):
        raise PTXError("a kernel parameter needs a name")
    name, offset, dtype = address.base.name, address.offset, types.dtype(type_name)
    sizes = {parameter.name: parameter.size for parameter in machine.kernel.parameters}
    outs = [machine.destination(element, type_name) for element in _elements(to, instruction)]
    if name not in sizes:
        raise PTXError(f"unknown parameter {name}")
    if offset < 0 or offset + len(outs) * dtype.itemsize > sizes[name]:
        raise PTXError(f"out of bounds: the parameter has {sizes[name]} bytes")

    def execute(active: Active) -> None:
        values = np.frombuffer(machine.launch.parameters[name], dtype, len(outs), offset)
        for out, value in zip(outs, values, strict=True):
            np.copyto(out, value, where=active.where)

    return execute


@operation("st", flags=_FLAGS)
def store(machine: Machine, instruction: Instruction) -> Execute:
    address, value = instruction.operands[:2]
    bits = types.bits(instruction.types[0])
    sources = [machine.source(element, f"b{bits}") for element in _elements(value, instruction)]
    resolve = resolver(machine, instruction, address)

    def execute(active: Active) -> None:
        memory, addresses = resolve(active)
        memory.store(addresses, bits, [active.take(source) for source in sources], active.lanes)

    return execute


def _elements(operand, instruction: Instruction) -> tuple:
    elements = operand.elements if isinstance(operand, Tuple) else (operand,)
    vector = instruction.flag_among("v2", "v4", "v8", default="v1")
    if len(elements) != int(vector[1:]):
        raise PTXError(f"{len(elements)} registers for a vector .{vector}")
    return elements
