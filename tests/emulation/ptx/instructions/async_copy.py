"""cp.async and its groups."""

import numpy as np

from ..active import Active
from ..errors import LaneError, PTXError
from ..machine import Machine
from ..memory import GlobalMemory, require_alignment
from ..syntax import Immediate, Instruction
from .registry import Execute, operation

_GROUPS = ("commit_group", "wait_group", "wait_all")


@operation("cp", flags="async ca cg shared shared::cta global " + " ".join(_GROUPS))
def asynchronous(machine: Machine, instruction: Instruction) -> Execute:
    match instruction.flag_among(*_GROUPS):
        case "commit_group":
            return lambda active: machine.copies.commit(active.lanes)
        case "wait_group":
            keep = _immediate(instruction.operands[0])
            return lambda active: machine.copies.wait(active.lanes, keep)
        case "wait_all":
            return lambda active: _wait_for_all(machine, active)
    return _copy(machine, instruction)


def _wait_for_all(machine: Machine, active: Active) -> None:
    machine.copies.commit(active.lanes)
    machine.copies.wait(active.lanes, 0)


def _copy(machine: Machine, instruction: Instruction) -> Execute:
    """Copies 4, 8 or 16 bytes; of these only the first `valid` ones are read, the rest becomes zero."""
    to, source, width, *valid = instruction.operands
    width = _immediate(width)
    if width not in (4, 8, 16) or ("cg" in instruction.flags and width != 16):
        raise PTXError("cp.async copies 4, 8 or 16 bytes, with .cg 16 only")
    to, source = machine.address(to), machine.address(source)
    valid = machine.source(valid[0] if valid else Immediate(width, "integer"), "u32")

    def execute(active: Active) -> None:
        content = _load(machine.launch.memory, source(active), width, active.take(valid), active.lanes)
        machine.copies.issue(to(active), content, active.lanes)

    return execute


def _load(memory: GlobalMemory, address: np.ndarray, width: int, valid: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """(lanes, width / 4) words, of whose bytes the first `valid` come from memory."""
    content = np.zeros((lanes.size, width // 4), np.uint32)
    if valid.max() > width:
        raise LaneError(f"cp.async of {width} bytes from a source of {valid.max()}", lanes[valid.argmax()])
    whole = valid == width
    if whole.any():
        content[whole] = np.stack(memory.load(address[whole], 32, width // 4, lanes[whole]), axis=1)
    partial = (valid > 0) & ~whole
    if partial.any():
        require_alignment(address[partial], width, lanes[partial])
    for size in np.unique(valid[partial]):
        some = valid == size
        for byte in range(size):
            content.view(np.uint8)[some, byte] = memory.load(address[some] + byte, 8, 1, lanes[some])[0]
    return content


def _immediate(operand) -> int:
    if not isinstance(operand, Immediate):
        raise PTXError("cp.async needs an immediate here")
    return operand.value
