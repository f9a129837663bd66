"""Barriers, and instructions that change nothing the executor models. The scheduler itself does branches."""

from ..active import Active
from ..errors import LaneError
from ..machine import Machine
from ..syntax import Instruction
from .registry import Execute, operation


@operation("bar", "barrier", flags="sync aligned warp cta")
def barrier(machine: Machine, instruction: Instruction) -> Execute:
    """The scheduler has let through whole blocks, or warps, together; this tells the watch over races."""
    races = machine.shared.races
    if not races:
        return _nothing
    synced = races.warp_barrier if "warp" in instruction.flags else races.block_barrier
    return lambda active: synced(active.lanes)


@operation("membar", "fence", "prefetch", "nanosleep", flags="cta gl sys gpu sc acq_rel global L1 L2")
def no_effect(machine: Machine, instruction: Instruction) -> Execute:
    return _nothing


@operation("trap")
def trap(machine: Machine, instruction: Instruction) -> Execute:
    def execute(active: Active) -> None:
        raise LaneError("the kernel gave up", active.lanes[0])

    return execute


def _nothing(active: Active) -> None:
    pass
