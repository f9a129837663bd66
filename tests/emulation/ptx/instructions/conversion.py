"""cvt: between integers and floats of all widths."""

from collections.abc import Callable

import numpy as np

from .. import types
from ..active import Active
from ..errors import PTXError
from ..machine import Machine
from ..syntax import Instruction
from .floating import flush_subnormals
from .registry import Execute, operation

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_FLAGS = "rn rna rni rzi rmi rpi ftz sat relu"


@operation("cvt", flags=_FLAGS)
def convert(machine: Machine, instruction: Instruction) -> Execute:
    if len(instruction.operands) == 3:
        return _pack_pair(machine, instruction)
    to_type, from_type = instruction.types
    to, value = instruction.operands
    if "packed" in (types.family(to_type), types.family(from_type)):
        raise PTXError("conversion between packed formats is not supported")
    if to_type == "tf32":
        return _round_to_tf32(machine, instruction)
    out, value = machine.destination(to, to_type), machine.source(value, from_type)
    change = _conversion(instruction, to_type, from_type)
    return lambda active: np.copyto(out, change(value), where=active.where, casting="unsafe")


def _conversion(instruction: Instruction, to_type: str, from_type: str) -> Callable:
    from_float, to_float = (types.family(name) == "float" for name in (from_type, to_type))
    if from_float:
        change = _float_to_float if to_float else _float_to_integer
    else:
        change = _integer_to_float if to_float else _integer_to_integer
    return change(instruction, to_type, from_type)


def _integer_to_integer(instruction: Instruction, to_type: str, from_type: str) -> Callable:
    dtype = types.dtype(to_type)
    if "sat" not in instruction.flags:
        return lambda value: value.astype(dtype)
    low, high = _range(to_type)
    own_low, own_high = _range(from_type)
    return lambda value: np.clip(value, max(low, own_low), min(high, own_high)).astype(dtype)


def _integer_to_float(instruction: Instruction, to_type: str, from_type: str) -> Callable:
    encode = _encoder(to_type)
    return lambda value: encode(value.astype(np.float64) if value.itemsize < 8 else value)


def _float_to_integer(instruction: Instruction, to_type: str, from_type: str) -> Callable:
    """Values beyond the range give its nearest end, NaN gives 0."""
    rounding = instruction.flag_among(*_TO_INTEGER)
    if rounding is None:
        raise PTXError("a conversion from float to integer needs a rounding modifier")
    round_, decode, dtype = _TO_INTEGER[rounding], _decoder(from_type, instruction), types.dtype(to_type)
    low, high = _range(to_type)

    def change(value: np.ndarray) -> np.ndarray:
        whole = np.nan_to_num(round_(decode(value).astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
        inside = np.where((whole > low) & (whole < high), whole, 0.0).astype(dtype)
        return np.where(whole >= high, dtype.type(high), np.where(whole <= low, dtype.type(low), inside))

    return change


def _float_to_float(instruction: Instruction, to_type: str, from_type: str) -> Callable:
    decode, encode = _decoder(from_type, instruction), _encoder(to_type)
    rounding = instruction.flag_among(*_TO_INTEGER)
    steps = [decode]
    if rounding:
        steps.append(_TO_INTEGER[rounding])
    if "sat" in instruction.flags:
        steps.append(lambda value: np.nan_to_num(np.clip(value, 0, 1), nan=0.0))
    if "relu" in instruction.flags:
        steps.append(lambda value: np.maximum(value, 0))

    def change(value: np.ndarray) -> np.ndarray:
        for step in (*steps, encode):
            value = step(value)
        return value

    return change


def _round_to_tf32(machine: Machine, instruction: Instruction) -> Execute:
    if "rna" not in instruction.flags:
        raise PTXError("conversion to tf32 is supported with .rna only")
    to, value = instruction.operands
    out, value = machine.destination(to, "b32"), machine.source(value, "b32")
    return lambda active: np.copyto(out, types.round_to_tf32(value), where=active.where)


def _pack_pair(machine: Machine, instruction: Instruction) -> Execute:
    """cvt.rn.bf16x2.f32 d, high, low."""
    to_type, from_type = instruction.types
    if types.family(to_type) != "packed" or from_type != "f32":
        raise PTXError("unsupported conversion of two values")
    to, high, low = instruction.operands
    element = to_type.removesuffix("x2")
    out_low, out_high = machine.parts(machine.destination(to, to_type), 2)
    dtype = types.dtype(element)
    high, low = machine.source(high, from_type), machine.source(low, from_type)
    change = _float_to_float(instruction, element, from_type)

    def execute(active: Active) -> None:
        first, second = change(low), change(high)
        np.copyto(out_low.view(dtype), first, where=active.where, casting="same_kind")
        np.copyto(out_high.view(dtype), second, where=active.where, casting="same_kind")

    return execute


def _decoder(type_name: str, instruction: Instruction) -> Callable:
    if type_name == "bf16":
        return types.bfloat16_to_float32
    return flush_subnormals if type_name == "f32" and "ftz" in instruction.flags else lambda value: value


def _encoder(type_name: str) -> Callable:
    if type_name == "bf16":
        return types.float32_to_bfloat16
    dtype = types.dtype(type_name)
    return lambda value: value.astype(dtype)


def _range(type_name: str) -> tuple[int, int]:
    bits = types.bits(type_name)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if type_name[0] == "s" else (0, (1 << bits) - 1)
