"""Exchange between the lanes of a warp. The scheduler has let through the lanes of each member mask together."""

import numpy as np

from .. import types
from ..active import Active
from ..errors import LaneError, PTXError
from ..machine import Machine
from ..syntax import Discard, Instruction, Tuple
from .registry import Execute, operation


@operation("shfl", flags="sync up down bfly idx")
def shuffle(machine: Machine, instruction: Instruction) -> Execute:
    """`d|p = value` of another lane; p says whether that lane is in range, and d is the lane's own value if not."""
    to, *operands = instruction.operands
    value, offset, clamp = (machine.source(operand, "b32") for operand in operands[:3])
    result, in_range = to.elements if isinstance(to, Tuple) else (to, Discard())
    out, valid_out = machine.destination(result, "b32"), machine.destination(in_range, "pred")
    mode = instruction.flag_among("up", "down", "bfly", "idx")
    lane = machine.lane_id.astype(np.int64)
    warp_start = np.arange(machine.lane_count) - lane

    def execute(active: Active) -> None:
        shift, limit = (offset & np.uint32(31)).astype(np.int64), (clamp & np.uint32(31)).astype(np.int64)
        segment = (clamp >> np.uint32(8) & np.uint32(31)).astype(np.int64)
        lowest, highest = lane & segment, (lane & segment) | (limit & ~segment)
        match mode:
            case "up":
                source = lane - shift
                valid = source >= highest  # its limit, 0 in the clamp, is the segment's first lane
            case "down":
                source = lane + shift
            case "bfly":
                source = lane ^ shift
            case "idx":
                source = lowest | (shift & ~segment)
        if mode != "up":
            valid = source <= highest
        source = warp_start + np.where(valid, source, lane)
        if not active.complete and (outside := active.mask & ~active.mask[source]).any():
            raise LaneError("shfl reads a lane that does not take part", np.argmax(outside))
        np.copyto(out, value[source], where=active.where)
        np.copyto(valid_out, valid, where=active.where)

    return execute


@operation("vote", flags="sync all any uni ballot")
def vote(machine: Machine, instruction: Instruction) -> Execute:
    """Predicates of a warp: as a mask of lanes, or whether they hold for all, for any, or for all or none."""
    to, operand, _ = instruction.operands
    mode = instruction.flag_among("ballot", "all", "any", "uni")
    out = machine.destination(to, "b32" if mode == "ballot" else "pred")
    predicate = machine.predicate(operand)

    def execute(active: Active) -> None:
        votes = (active.mask & predicate()).reshape(-1, 32)
        if mode == "ballot":
            result = np.packbits(votes, axis=1, bitorder="little").view(np.uint32).reshape(-1)
        else:
            some = votes.any(axis=1)
            unanimous = (votes | ~active.mask.reshape(-1, 32)).all(axis=1)
            result = {"any": some, "all": unanimous, "uni": unanimous | ~some}[mode]
        np.copyto(out, np.repeat(result, 32), where=active.where)

    return execute


@operation("redux", on="integer", flags="sync add min max and or xor")
def reduce(machine: Machine, instruction: Instruction) -> Execute:
    """The sum, minimum, … of a warp's values."""
    (type_name,) = instruction.types
    to, operand, _ = instruction.operands
    dtype = types.dtype(type_name)
    limits = np.iinfo(dtype)
    ufunc, neutral = {
        "add": (np.add, 0),
        "min": (np.minimum, limits.max),
        "max": (np.maximum, limits.min),
        "and": (np.bitwise_and, np.array(-1).astype(dtype)),
        "or": (np.bitwise_or, 0),
        "xor": (np.bitwise_xor, 0),
    }[instruction.flag_among("add", "min", "max", "and", "or", "xor")]
    out, value = machine.destination(to, type_name), machine.source(operand, type_name)

    def execute(active: Active) -> None:
        taking_part = np.where(active.mask, value, dtype.type(neutral)).reshape(-1, 32)
        result = ufunc.reduce(taking_part, axis=1, dtype=dtype)
        np.copyto(out, np.repeat(result, 32), where=active.where)

    return execute


@operation("activemask")
def active_mask(machine: Machine, instruction: Instruction) -> Execute:
    """The lanes of the warp that execute this together."""
    if instruction.types != ("b32",):
        raise PTXError("activemask yields b32")
    out = machine.destination(instruction.operands[0], "b32")

    def execute(active: Active) -> None:
        bits = np.packbits(active.mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32).reshape(-1)
        np.copyto(out, np.repeat(bits, 32), where=active.where)

    return execute
