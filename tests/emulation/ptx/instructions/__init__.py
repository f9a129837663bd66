"""What each instruction does. `bind` turns an instruction into a closure over the arrays it reads and writes."""

from . import (
    arithmetic,
    async_copy,
    atomic,
    bits,
    control,
    conversion,
    floating,
    matrix,
    memory,
    move,
    predicate,
    warp,
)
from .registry import bind

__all__ = [
    "arithmetic",
    "async_copy",
    "atomic",
    "bind",
    "bits",
    "control",
    "conversion",
    "floating",
    "matrix",
    "memory",
    "move",
    "predicate",
    "warp",
]
