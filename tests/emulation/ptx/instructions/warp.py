"""Exchange between the lanes of a warp. The scheduler has let through the lanes of each member mask together."""

import numpy as np

from .. import types
from ..active import Active, warp_bits
from ..errors import LaneError, PTXError
from ..machine import Machine
from ..syntax import Discard, Instruction, Tuple
from .registry import Execute, operation


@operation("shfl", flags="sync up down bfly idx")
def shuffle(machine: Machine, instruction: Instruction) -> Execute:
    """`d|p = value` of another lane; p says whether that lane is in range, and d is the lane's own value if not."""
    to, *operands = instruction.operands
    value, offset, clamp, members = (machine.source(operand, "b32") for operand in operands)
    result, in_range = to.elements if isinstance(to, Tuple) else (to, Discard())
    out, valid_out = machine.destination(result, "b32"), machine.destination(in_range, "pred")
    mode = instruction.flag_among("up", "down", "bfly", "idx")
    lane = machine.lane_id.astype(np.int64)
    warp_start = np.arange(machine.lane_count) - lane

    def execute(active: Active) -> None:
        shift, limit = (offset & np.uint32(31)).astype(np.int64), (clamp & np.uint32(31)).astype(np.int64)
        segment = (clamp >> np.uint32(8) & np.uint32(31)).astype(np.int64)
        first = lane & segment
        last = first | (limit & ~segment)  # with .up the first lane, as the clamp is 0 then
        match mode:
            case "up":
                chosen = lane - shift
            case "down":
                chosen = lane + shift
            case "bfly":
                chosen = lane ^ shift
            case "idx":
                chosen = first | (shift & ~segment)
        valid = chosen >= last if mode == "up" else chosen <= last
        chosen = np.where(valid, chosen, lane)
        source = warp_start + chosen
        takes_part = active.mask[source] & (members >> chosen.astype(np.uint32) & np.uint32(1)).astype(bool)
        if (outside := active.mask & ~takes_part).any():
            raise LaneError("shfl reads a lane that does not take part", np.argmax(outside))
        np.copyto(out, value[source], where=active.where)
        np.copyto(valid_out, valid, where=active.where)

    return execute


@operation("vote", flags="sync all any uni ballot")
def vote(machine: Machine, instruction: Instruction) -> Execute:
    """The members' predicates: as a mask of lanes, or whether they hold for all, for any, or for all or none."""
    to, operand, members = instruction.operands
    mode = instruction.flag_among("ballot", "all", "any", "uni")
    out = machine.destination(to, "b32" if mode == "ballot" else "pred")
    predicate, members = machine.predicate(operand), machine.source(members, "b32")

    def execute(active: Active) -> None:
        votes = _lane_bits(active.mask & predicate()) & members
        voters = _lane_bits(active.mask) & members
        match mode:
            case "ballot":
                result = votes
            case "any":
                result = votes != 0
            case "all":
                result = votes == voters
            case "uni":
                result = (votes == voters) | (votes == 0)
        np.copyto(out, result, where=active.where)

    return execute


@operation("redux", on="integer", flags="sync add min max and or xor")
def reduce(machine: Machine, instruction: Instruction) -> Execute:
    """The sum, minimum, … of the members' values."""
    (type_name,) = instruction.types
    to, operand, members = instruction.operands
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
    members = machine.source(members, "b32")

    def execute(active: Active) -> None:
        strangers = active.mask & (_lane_bits(active.mask) & ~members != 0)
        if strangers.any():
            raise LaneError("redux for several member masks of a warp at once is not supported", np.argmax(strangers))
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

    return lambda active: np.copyto(out, _lane_bits(active.mask), where=active.where)


def _lane_bits(mask: np.ndarray) -> np.ndarray:
    """For each lane an integer with a bit for each lane of its warp."""
    return np.repeat(warp_bits(mask), 32)
