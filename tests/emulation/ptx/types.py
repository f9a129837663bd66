"""PTX scalar types as numpy dtypes, and the two float formats that numpy lacks."""

import re
from functools import cache

import numpy as np

from .errors import PTXError

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
_FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
_BITS = {"pred": 1, "bf16": 16, "tf32": 32, "f16x2": 32, "bf16x2": 32, "f32x2": 64}
_PLAIN = re.compile(r"[busf](8|16|32|64)")


@cache
def is_type(name: str) -> bool:
    """Whether an instruction's modifier is a type: `f32`, `s64`, `bf16x2`, `pred`."""
    return name in _BITS or (_PLAIN.fullmatch(name) is not None and name != "f8")


@cache
def bits(name: str) -> int:
    """Width of a type in bits."""
    if not is_type(name):
        raise PTXError(f"unsupported type .{name}")
    return _BITS.get(name) or int(name[1:])


@cache
def family(name: str) -> str:
    """`predicate`, `integer` (untyped bits too), `float` or `packed` (two floats in one register)."""
    if name == "pred":
        return "predicate"
    if name.endswith("x2"):
        return "packed"
    return "float" if name[0] == "f" or name in ("bf16", "tf32") else "integer"


@cache
def dtype(name: str) -> np.dtype:
    """The numpy dtype in which values of a type are computed; bit patterns for formats that numpy lacks."""
    if name == "pred":
        return np.dtype(bool)
    tables = {"s": _SIGNED, "f": _FLOAT}
    table = tables.get(name[0], UNSIGNED) if name not in _BITS else UNSIGNED
    return np.dtype(table[bits(name)])


def bfloat16_to_float32(pattern: np.ndarray) -> np.ndarray:
    """float32 values of uint16 bfloat16 bit patterns."""
    return (pattern.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(value: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of float32 values rounded to nearest even; every NaN becomes 0x7FFF, as on a GPU."""
    pattern = np.ascontiguousarray(value, np.float32).view(np.uint32)
    last_bit = (pattern >> np.uint32(16)) & np.uint32(1)
    rounded = (pattern + np.uint32(0x7FFF) + last_bit) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded).astype(np.uint16)


def round_to_tf32(pattern: np.ndarray) -> np.ndarray:
    """uint32 float32 patterns rounded to tf32's 10 mantissa bits, ties away from zero (cvt.rna); NaN stays NaN."""
    rounded = (pattern + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(pattern.view(np.float32)), np.uint32(0x7FFFFFFF), rounded)


def truncate_to_tf32(pattern: np.ndarray) -> np.ndarray:
    """float32 values of uint32 patterns as mma.sync reads tf32: the low 13 bits are ignored."""
    return (pattern & np.uint32(0xFFFFE000)).view(np.float32)
