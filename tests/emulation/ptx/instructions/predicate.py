"""Comparisons, logic on predicates, and selection."""

from collections.abc import Callable

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Discard, Instruction, Tuple
from .registry import Execute, operation

_ORDERED = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
_UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}
_INTEGER = {
    "eq": np.equal,
    "ne": np.not_equal,
    **dict.fromkeys(("lt", "lo"), np.less),
    **dict.fromkeys(("le", "ls"), np.less_equal),
    **dict.fromkeys(("gt", "hi"), np.greater),
    **dict.fromkeys(("ge", "hs"), np.greater_equal),
}
_LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_FLAGS = " ".join({*_ORDERED, *_UNORDERED, *_INTEGER, *_LOGIC, "ftz"})


@operation("setp", flags=_FLAGS)
def set_predicate(machine: Machine, instruction: Instruction) -> Execute:
    """`p|q = comparison`, q being the opposite of p; both may be combined with a third predicate."""
    to, *operands = instruction.operands
    result = _comparison(machine, instruction, instruction.types[0], operands)
    first, second = to.elements if isinstance(to, Tuple) else (to, Discard())
    out, opposite = machine.destination(first, "pred"), machine.destination(second, "pred")
    has_opposite = not isinstance(second, Discard)
    if has_opposite and len(operands) > 2:
        raise PTXError("a second result and a third operand at once are not supported")

    def execute(active: Active) -> None:
        value = result()
        np.copyto(out, value, where=active.where)
        if has_opposite:
            np.copyto(opposite, ~value, where=active.where)

    return execute


@operation("set", flags=_FLAGS)
def set_value(machine: Machine, instruction: Instruction) -> Execute:
    """All bits, or 1.0, where the comparison holds; 0 elsewhere."""
    result_type, operand_type = instruction.types
    to, *operands = instruction.operands
    result = _comparison(machine, instruction, operand_type, operands)
    out = machine.destination(to, result_type)
    true = out.dtype.type(1) if out.dtype.kind == "f" else np.array(-1).astype(out.dtype)
    return lambda active: np.copyto(out, np.where(result(), true, out.dtype.type(0)), where=active.where)


def _comparison(machine: Machine, instruction: Instruction, type_name: str, operands: list) -> Callable:
    if types.family(type_name) == "packed":
        raise PTXError("comparisons of packed values are not supported")
    left, right = (machine.source(operand, type_name) for operand in operands[:2])
    if type_name == "bf16":
        value = types.bfloat16_to_float32
        compare = _comparator(instruction, "f32")
        holds = lambda: compare(value(left), value(right))  # noqa: E731
    else:
        compare = _comparator(instruction, type_name)
        holds = lambda: compare(left, right)  # noqa: E731
    logic = instruction.flag_among(*_LOGIC)
    if (logic is None) != (len(operands) == 2):
        raise PTXError("a third operand needs .and, .or or .xor")
    if logic is None:
        return holds
    combine, third = _LOGIC[logic], machine.predicate(operands[2])
    return lambda: combine(holds(), third())


def _comparator(instruction: Instruction, type_name: str) -> Callable:
    name = instruction.flags[0]
    if types.family(type_name) != "float":
        return _INTEGER[name]
    if name in _UNORDERED:
        opposite = _ORDERED[_UNORDERED[name]]
        return lambda left, right: ~opposite(left, right)
    return _ORDERED[name]


@operation("and", "or", "xor", on="predicate")
def logic(machine: Machine, instruction: Instruction) -> Execute:
    to, *operands = instruction.operands
    out = machine.destination(to, "pred")
    left, right = (machine.source(operand, "pred") for operand in operands)
    ufunc = _LOGIC[instruction.opcode]
    return lambda active: ufunc(left, right, out=out, where=active.where)


@operation("not", on="predicate")
def negation(machine: Machine, instruction: Instruction) -> Execute:
    to, operand = instruction.operands
    out, value = machine.destination(to, "pred"), machine.source(operand, "pred")
    return lambda active: np.logical_not(value, out=out, where=active.where)


@operation("selp")
def select(machine: Machine, instruction: Instruction) -> Execute:
    pattern = f"b{types.bits(instruction.types[0])}"
    to, if_true, if_false, condition = instruction.operands
    out, holds = machine.destination(to, pattern), machine.predicate(condition)
    if_true, if_false = machine.source(if_true, pattern), machine.source(if_false, pattern)
    return lambda active: np.copyto(out, np.where(holds(), if_true, if_false), where=active.where)
