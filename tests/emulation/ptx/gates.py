"""Which of the threads that have come to a synchronising instruction may go on."""

from collections.abc import Callable

import numpy as np

from .active import warp_bits
from .errors import LaneError
from .machine import Machine
from .syntax import Instruction

Gate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(mask of the lanes that have arrived, mask of the living) -> mask of the lanes that may go on."""

_WHOLE_WARP = np.uint32(0xFFFFFFFF)


def gate(machine: Machine, instruction: Instruction) -> Gate:
    """The gate of one instruction of `program.GATES`."""
    if instruction.opcode in ("mma", "ldmatrix"):
        return _whole_warp_gate
    if instruction.opcode in ("bar", "barrier") and "warp" not in instruction.flags:
        return _block_gate(machine, instruction)
    return _member_gate(machine, instruction)


def _block_gate(machine: Machine, instruction: Instruction) -> Gate:
    """All living threads of the block."""
    if len(instruction.operands) > 1:
        raise instruction.error("barriers for a given number of threads are not supported")

    def admit(arrived: np.ndarray, alive: np.ndarray) -> np.ndarray:
        missing = (alive & ~arrived).reshape(-1, machine.lanes_per_block).any(axis=1)
        return arrived & np.repeat(~missing, machine.lanes_per_block)

    return admit


def _member_gate(machine: Machine, instruction: Instruction) -> Gate:
    """The living threads of the warp that the last operand, a mask, names."""
    members = machine.source(instruction.operands[-1], "b32")

    def admit(arrived: np.ndarray, alive: np.ndarray) -> np.ndarray:
        outside = arrived & ((members >> machine.lane_id) & np.uint32(1) == 0)
        if outside.any():
            raise LaneError("a thread is not in its own member mask", np.argmax(outside))
        missing = members & np.repeat(warp_bits(alive & ~arrived), 32)
        return arrived & (missing == 0)

    return admit


def _whole_warp_gate(arrived: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """All 32 threads; it is an error if some of them have exited."""
    if arrived.all():
        return arrived
    bits = warp_bits(arrived)
    lacking = (bits != 0) & (warp_bits(arrived | ~alive) == _WHOLE_WARP) & (bits != _WHOLE_WARP)
    if lacking.any():
        raise LaneError("the instruction needs all 32 threads of the warp, some have exited", 32 * np.argmax(lacking))
    return arrived & np.repeat(bits == _WHOLE_WARP, 32)
