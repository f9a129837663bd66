"""Which memory a load, store or atomic operation goes to."""

from collections.abc import Callable

import numpy as np

from ..active import Active
from ..errors import LaneError
from ..machine import LOCAL_WINDOW, SHARED_WINDOW, Machine
from ..memory import GlobalMemory, PrivateMemory
from ..syntax import Instruction

SPACES = "global shared shared::cta local const"

Resolve = Callable[[Active], tuple[GlobalMemory | PrivateMemory, np.ndarray]]


def resolver(machine: Machine, instruction: Instruction, operand) -> Resolve:
    """The memory and the addresses in it that the active lanes mean by an address operand."""
    address = machine.address(operand)
    space = instruction.flag_among(*SPACES.split())
    if space is None:
        return lambda active: _generic(machine, address(active), active)
    if space in ("global", "const"):
        return lambda active: (machine.launch.memory, address(active))
    memory = machine.local if space == "local" else machine.shared
    return lambda active: (memory, address(active))


def _generic(machine: Machine, address: np.ndarray, active: Active) -> tuple[GlobalMemory | PrivateMemory, np.ndarray]:
    window = address & ~np.int64((1 << 56) - 1)
    if (window != window[0]).any():
        raise LaneError("generic addresses of different spaces in one instruction are not supported", active.lanes[0])
    memories = {SHARED_WINDOW: machine.shared, LOCAL_WINDOW: machine.local}
    memory = memories.get(int(window[0]))
    return (memory, address - window) if memory else (machine.launch.memory, address)
