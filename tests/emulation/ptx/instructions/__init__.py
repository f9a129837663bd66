"""What each instruction does. `bind` turns an instruction into a closure over the arrays it reads and writes."""

# Importing a module registers its instructions.
from . import (  # noqa: F401
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

__all__ = ["bind"]
