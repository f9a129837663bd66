"""Floating-point arithmetic: float32 and float64 directly, halves (alone or packed in pairs) by way of float64.

Results are rounded to nearest even; float32 ones also towards zero, down or up if the instruction says so.
"""

from collections.abc import Callable

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Instruction
from .registry import Execute, operation

_SMALLEST_NORMAL = np.float32(2.0**-126)


def _fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    product = np.multiply(a, b, dtype=np.float64)  # exact for float32 and halves
    product += c
    return product


_FUNCTIONS: dict[str, tuple[int, Callable]] = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div": (2, np.divide),
    "fma": (3, _fma),
    "min": (2, np.fmin),
    "max": (2, np.fmax),
    "abs": (1, np.abs),
    "neg": (1, np.negative),
    "copysign": (2, lambda sign, magnitude: np.copysign(magnitude, sign)),
    "rcp": (1, lambda x: np.divide(x.dtype.type(1), x)),
    "sqrt": (1, np.sqrt),
    "rsqrt": (1, lambda x: np.divide(x.dtype.type(1), np.sqrt(x))),
    "ex2": (1, np.exp2),
    "lg2": (1, np.log2),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "tanh": (1, np.tanh),
}
_NAN_FUNCTIONS = {"min": np.minimum, "max": np.maximum}
_DIRECTIONS: dict[str, tuple[float, Callable]] = {
    "rz": (0.0, lambda nearest, exact: np.abs(nearest) > np.abs(exact)),
    "rm": (-np.inf, np.greater),
    "rp": (np.inf, np.less),
}
_FLAGS = "rn rz rm rp approx full ftz sat relu NaN"


@operation(*_FUNCTIONS, on="float", flags=_FLAGS)
def scalar(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, *operands = instruction.operands
    function = _function(instruction, len(operands))
    out = machine.destination(to, type_name)
    sources = [machine.source(operand, type_name) for operand in operands]
    if isinstance(function, np.ufunc) and type_name in ("f32", "f64"):
        return lambda active: function(*sources, out=out, where=active.where)
    return _through_codec(function, type_name, out, sources)


@operation(*_FUNCTIONS, on="packed", flags=_FLAGS)
def packed(machine: Machine, instruction: Instruction) -> Execute:
    (type_name,) = instruction.types
    to, *operands = instruction.operands
    function = _function(instruction, len(operands))
    element = type_name.removesuffix("x2")
    out, *sources = [
        [part.view(types.dtype(element)) for part in machine.parts(register, 2)]
        for register in (
            machine.destination(to, type_name),
            *(machine.source(operand, type_name) for operand in operands),
        )
    ]
    low, high = [_through_codec(function, element, out[half], [part[half] for part in sources]) for half in (0, 1)]

    def execute(active: Active) -> None:
        low(active)
        high(active)

    return execute


def _through_codec(function: Callable, type_name: str, out: np.ndarray, sources: list[np.ndarray]) -> Execute:
    if type_name == "bf16":
        decode, encode = types.bfloat16_to_float32, types.float32_to_bfloat16
    elif type_name == "f16":
        decode, encode = lambda value: value.astype(np.float64), lambda value: value
    else:
        decode = encode = lambda value: value

    def execute(active: Active) -> None:
        result = encode(function(*[decode(source) for source in sources]))
        np.copyto(out, result, where=active.where, casting="same_kind")

    return execute


def _function(instruction: Instruction, operand_count: int) -> Callable:
    """The function with the instruction's flags applied."""
    flags = instruction.flags
    expected, function = _FUNCTIONS[instruction.opcode]
    if operand_count != expected:
        raise PTXError(f"{instruction.opcode} takes {expected} operands")
    if "NaN" in flags:
        function = _NAN_FUNCTIONS[instruction.opcode]
    if direction := instruction.flag_among(*_DIRECTIONS):
        if instruction.types != ("f32",):
            raise PTXError(f"rounding mode .{direction} is supported for f32 only")
        function = _rounding(function, *_DIRECTIONS[direction])
    if "ftz" in flags and "f32" in instruction.types:
        function = _flushing(function)
    if "sat" in flags:
        return _then(function, lambda value: np.nan_to_num(np.clip(value, 0, 1), nan=0.0))
    if "relu" in flags:
        return _then(function, lambda value: np.maximum(value, 0))
    return function


def _then(function: Callable, last: Callable) -> Callable:
    return lambda *arguments: last(function(*arguments))


def _rounding(function: Callable, target: float, is_beyond: Callable) -> Callable:
    """Rounds towards `target`: where the nearest float32 lies on the other side of the exact value, the next one."""

    def rounded(*arguments: np.ndarray) -> np.ndarray:
        exact = function(*[argument.astype(np.float64) for argument in arguments])
        nearest = exact.astype(np.float32)
        return np.where(is_beyond(nearest, exact), np.nextafter(nearest, np.float32(target)), nearest)

    return rounded


def _flushing(function: Callable) -> Callable:
    """.ftz: subnormal arguments and results become zeros of the same sign."""
    return lambda *arguments: flush_subnormals(function(*map(flush_subnormals, arguments)).astype(np.float32))


def flush_subnormals(value: np.ndarray) -> np.ndarray:
    """float32 values with subnormal ones replaced by zeros of the same sign."""
    tiny = np.abs(value) < _SMALLEST_NORMAL
    return np.where(tiny, np.copysign(np.float32(0), value), value) if tiny.any() else value
