"""Finds the function that binds an instruction to a machine."""

from collections.abc import Callable

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Instruction

Execute = Callable[[Active], None]
Binder = Callable[[Machine, Instruction], Execute]

_BINDERS: dict[tuple[str, str | None], tuple[Binder, frozenset[str]]] = {}


def operation(*opcodes: str, on: str | None = None, flags: str = "") -> Callable[[Binder], Binder]:
    """Registers the binder of opcodes whose last type belongs to the family `on` (any if None; see `types.family`).

    A flag that is not among `flags` (separated by blanks) is an error, so that no modifier is ever overlooked.
    """

    def register(binder: Binder) -> Binder:
        for opcode in opcodes:
            _BINDERS[opcode, on] = binder, frozenset(flags.split())
        return binder

    return register


def bind(machine: Machine, instruction: Instruction) -> Execute:
    """Decodes an instruction once: the result executes it for the lanes it is given."""
    family = types.family(instruction.types[-1]) if instruction.types else None
    key = (instruction.opcode, family)
    if key not in _BINDERS:
        key = (instruction.opcode, None)
    if key not in _BINDERS:
        raise instruction.error("unsupported instruction")
    binder, flags = _BINDERS[key]
    for flag in instruction.flags:
        if flag not in flags and not flag.startswith(("L1::", "L2::")):  # the latter advise the caches
            raise instruction.error(f"unsupported modifier .{flag}")
    try:
        return binder(machine, instruction)
    except PTXError as error:
        raise instruction.error(str(error)) from None
    except (ValueError, IndexError):
        raise instruction.error("unsupported number of operands or types") from None
