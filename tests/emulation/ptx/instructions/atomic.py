"""atom and red: one lane after the other, in the order of lanes, so that results are the same in every run."""

from collections.abc import Callable

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Discard, Instruction
from .registry import Execute, operation
from .spaces import SPACES, resolver

_FUNCTIONS: dict[str, Callable] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "inc": lambda old, limit: old + 1 if old < limit else 0,
    "dec": lambda old, limit: old - 1 if 0 < old <= limit else limit,
}
_FLAGS = SPACES + " relaxed acquire release acq_rel cta gpu sys noftz cas " + " ".join(_FUNCTIONS)


@operation("atom", on="integer", flags=_FLAGS)
@operation("atom", on="float", flags=_FLAGS)
def atomic(machine: Machine, instruction: Instruction) -> Execute:
    to, *operands = instruction.operands
    return _atomic(machine, instruction, to, operands)


@operation("red", on="integer", flags=_FLAGS)
@operation("red", on="float", flags=_FLAGS)
def reduction(machine: Machine, instruction: Instruction) -> Execute:
    return _atomic(machine, instruction, Discard(), instruction.operands)


def _atomic(machine: Machine, instruction: Instruction, to, operands) -> Execute:
    (type_name,) = instruction.types
    if type_name == "bf16":
        raise PTXError("atomic operations on bf16 are not supported")
    bits, dtype = types.bits(type_name), types.dtype(type_name)
    out = machine.destination(to, type_name)
    resolve = resolver(machine, instruction, operands[0])
    sources = [machine.source(operand, type_name) for operand in operands[1:]]
    update = _update(instruction, len(sources))

    def execute(active: Active) -> None:
        memory, addresses = resolve(active)
        found = np.empty(active.count, dtype)
        arguments = zip(*[active.take(source) for source in sources], strict=True)
        for position, values in enumerate(arguments):
            here = slice(position, position + 1)
            cell = memory.cell(addresses[here], bits, active.lanes[here]).view(dtype)
            found[position] = cell[0]
            cell[0] = update(cell[0], *values)
        active.put(out, found)

    return execute


def _update(instruction: Instruction, operand_count: int) -> Callable:
    if "cas" in instruction.flags:
        if operand_count != 2:
            raise PTXError("cas takes an address and two values")
        return lambda old, expected, new: new if old == expected else old
    if operand_count != 1:
        raise PTXError("an atomic operation takes an address and a value")
    return _FUNCTIONS[instruction.flag_among(*_FUNCTIONS)]
