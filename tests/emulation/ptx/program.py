"""What can be said about a kernel before it is launched: straight-line segments, data flow, widths of accesses."""

from dataclasses import dataclass

from . import types
from .syntax import Address, Immediate, Instruction, Kernel, Symbol, Tuple, registers_of

BRANCHES = ("bra", "ret", "exit")
GATES = ("bar", "barrier", "shfl", "vote", "redux", "mma", "ldmatrix")
"""Instructions at which threads wait for one another."""
_NO_RESULT = (*BRANCHES, "bar", "barrier", "st", "red", "cp", "fence", "membar", "prefetch", "nanosleep", "trap")
_SPACES = {"global", "shared", "local", "const", "param"}


@dataclass(slots=True)
class Segment:
    """Instructions [start, stop) run one after the other; then `branch`, if there is one, decides where to go on.

    `gate` is the first instruction if that one makes threads wait for one another: threads enter a segment together
    or not at all, hence such an instruction begins a segment of its own.
    """

    start: int
    stop: int
    gate: Instruction | None
    branch: Instruction | None

    def successors(self, kernel: Kernel) -> list[int]:
        """Indices of the instructions at which threads may go on."""
        if self.branch is None:
            return [self.stop]
        falls_through = [self.stop + 1] if self.branch.predicate else []
        return falls_through + ([target(self.branch, kernel)] if self.branch.opcode == "bra" else [])


def target(branch: Instruction, kernel: Kernel) -> int:
    """Index of the instruction to which a `bra` leads."""
    label = branch.operands[0]
    if not isinstance(label, Symbol) or label.name not in kernel.labels:
        raise branch.error("branch to an unknown label")
    return kernel.labels[label.name]


@dataclass(frozen=True, slots=True)
class Program:
    """A kernel, its segments by index of their first instruction, and what else its launches have in common.

    `unproven_reads`: see `_unproven_reads`. `narrowest`: bytes of the narrowest access to global and to shared memory.
    """

    kernel: Kernel
    segments: dict[int, Segment]
    unproven_reads: dict[int, set[str]]
    narrowest: dict[str, int]


def analyse(kernel: Kernel) -> Program:
    """Prepares a kernel for execution; this does not depend on how it is launched."""
    segments = _segments(kernel)
    narrowest = {space: _narrowest_access(kernel, space) for space in ("global", "shared")}
    return Program(kernel, segments, _unproven_reads(kernel, segments), narrowest)


def _segments(kernel: Kernel) -> dict[int, Segment]:
    instructions = kernel.instructions
    starts = {0, *kernel.labels.values()}
    for index, instruction in enumerate(instructions):
        if instruction.opcode in BRANCHES:
            starts.add(index + 1)
        if instruction.opcode in GATES:
            if instruction.predicate:
                raise instruction.error("synchronising instructions with a predicate are not supported")
            starts.add(index)
    bounds = sorted(start for start in starts if start < len(instructions))
    found = {}
    for start, stop in zip(bounds, [*bounds[1:], len(instructions)], strict=True):
        gate = instructions[start] if instructions[start].opcode in GATES else None
        branch = instructions[stop - 1] if instructions[stop - 1].opcode in BRANCHES else None
        found[start] = Segment(start, stop - (branch is not None), gate, branch)
    return found


def reads(instruction: Instruction) -> set[str]:
    """Registers whose values an instruction uses, its predicate included."""
    names = set(registers_of(instruction.predicate))
    for position, operand in enumerate(instruction.operands):
        if position > 0 or instruction.opcode in _NO_RESULT or isinstance(operand, Address):
            names.update(registers_of(operand))
    return names


def writes(instruction: Instruction) -> set[str]:
    """Registers that an instruction sets."""
    if instruction.opcode in _NO_RESULT or not instruction.operands:
        return set()
    return set(registers_of(instruction.operands[0]))


def _packed(instruction: Instruction) -> set[str]:
    """Registers that a `mov` packs into one."""
    if instruction.opcode != "mov" or not isinstance(instruction.operands[1], Tuple):
        return set()
    return set(registers_of(instruction.operands[1]))


def _unproven_reads(kernel: Kernel, segments: dict[int, Segment]) -> dict[int, set[str]]:
    """By instruction index, the registers it reads that not every path to it has certainly written.

    Forward data flow; the few reads left over (say, of a register written under a predicate and read under the same
    one) are checked thread by thread when executed. A half that LLVM leaves undefined, packed by `mov` from a register
    that no instruction writes, is no error: it holds 0xFF bytes like all that nobody wrote.
    """
    written = [set() if instruction.predicate else writes(instruction) for instruction in kernel.instructions]
    ever_written = set().union(*map(writes, kernel.instructions))
    at_entry = {0: set()}
    pending = [0]
    while pending:
        segment = segments[pending.pop()]
        known = at_entry[segment.start].union(*written[segment.start : segment.stop])
        for successor in segment.successors(kernel):
            if successor in segments and (successor not in at_entry or not at_entry[successor] <= known):
                at_entry[successor] = known & at_entry.get(successor, known)
                pending.append(successor)
    found = {}
    for start, known in at_entry.items():
        segment, known = segments[start], set(known)
        for index in range(start, segment.stop + (segment.branch is not None)):
            unknown = reads(kernel.instructions[index]) - known
            unknown -= _packed(kernel.instructions[index]) - ever_written
            if unknown:
                found[index] = unknown
            known |= written[index]
    return found


def _narrowest_access(kernel: Kernel, space: str) -> int:
    """Accesses that name no space may go to either."""
    widths = [16]
    for instruction in kernel.instructions:
        spaces = _SPACES.intersection(flag.removesuffix("::cta") for flag in instruction.flags)
        width = _access_width(instruction)
        if width and (space in spaces or not spaces):
            widths.append(width)
    return min(widths)


def _access_width(instruction: Instruction) -> int | None:
    """Bytes that one thread accesses."""
    match instruction.opcode:
        case "ldmatrix":
            return 16
        case "cp" if len(instruction.operands) > 2 and isinstance(instruction.operands[2], Immediate):
            return instruction.operands[2].value
        case "ld" | "st" | "atom" | "red":
            vector = instruction.flag_among("v2", "v4", "v8", default="v1")
            return types.bits(instruction.types[-1]) // 8 * int(vector[1:])
    return None
