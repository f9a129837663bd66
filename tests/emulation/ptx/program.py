"""A kernel as straight-line segments, and which of its register reads have to be checked at run time."""

from dataclasses import dataclass

from .syntax import Address, Instruction, Kernel, Symbol, registers_of

BRANCHES = ("bra", "ret", "exit")
GATES = ("bar", "barrier", "shfl", "vote", "redux", "mma", "ldmatrix")
"""Instructions at which threads wait for one another."""
_NO_RESULT = (
    *BRANCHES,
    "bar",
    "barrier",
    "st",
    "red",
    "cp",
    "fence",
    "membar",
    "prefetch",
    "nanosleep",
    "trap",
)


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


def segments(kernel: Kernel) -> dict[int, Segment]:
    """All segments, by the index of their first instruction. Running off the end is an exit."""
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
        ends_in_branch = instructions[stop - 1].opcode in BRANCHES
        branch = instructions[stop - 1] if ends_in_branch else None
        found[start] = Segment(start, stop - ends_in_branch, gate, branch)
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


def unproven_reads(kernel: Kernel, graph: dict[int, Segment]) -> dict[int, set[str]]:
    """By instruction index, the registers it reads that not every path to it has certainly written.

    Forward data flow; the few reads left over (say, of a register written under a predicate and read under the same
    one) are checked thread by thread when executed.
    """
    written = [set() if instruction.predicate else writes(instruction) for instruction in kernel.instructions]
    at_entry = {0: set()}
    pending = [0]
    while pending:
        segment = graph[pending.pop()]
        known = at_entry[segment.start].union(*written[segment.start : segment.stop])
        for successor in segment.successors(kernel):
            if successor in graph and (successor not in at_entry or not at_entry[successor] <= known):
                at_entry[successor] = known & at_entry.get(successor, known)
                pending.append(successor)
    found = {}
    for start, known in at_entry.items():
        segment, known = graph[start], set(known)
        for index in range(start, segment.stop + (segment.branch is not None)):
            unknown = reads(kernel.instructions[index]) - known
            if unknown:
                found[index] = unknown
            known |= written[index]
    return found
