"""Runs a chunk of the grid: all threads that stand at the same segment together, the lowest segment first.

Taking the lowest first makes threads that diverged meet again: those that left a loop wait, further down in the text,
for those still in it.
"""

from collections.abc import Callable

import numpy as np

from . import program
from .active import Active
from .errors import LaneError, PTXError
from .gates import gate
from .instructions import bind
from .machine import Machine
from .syntax import Instruction

_MOST_SEGMENTS = 1_000_000  # a chunk that runs more of them is taken to hang

Execute = Callable[[Active], None]


class Scheduler:
    """Binds a kernel to a machine; `run` then executes one chunk after the other.

    `segments` and `unproven_reads` come from the functions of these names in `program`.
    """

    def __init__(self, machine: Machine, segments: dict[int, program.Segment], unproven_reads: dict[int, set[str]]):
        self._machine, self._segments, self._unproven = machine, segments, unproven_reads
        tracked = {name for names in unproven_reads.values() for name in names}
        self._written = {name: np.zeros(machine.lane_count, bool) for name in tracked}
        self._gates = {start: gate(machine, segment.gate) for start, segment in segments.items() if segment.gate}
        self._steps = {
            start: [self._step(index) for index in range(start, segment.stop)] for start, segment in segments.items()
        }
        self._branches = {start: self._branch(segment) for start, segment in segments.items() if segment.branch}

    def run(self, first_block: int) -> None:
        """Executes the blocks from `first_block` on, as many as the machine has room for."""
        for written in self._written.values():
            written.fill(False)
        self._alive = self._machine.start(first_block)
        self._arriving = {0: self._alive}  # by segment: the lanes that stand before it
        self._held = {}  # likewise: the lanes that wait there for others
        try:
            for _ in range(_MOST_SEGMENTS):
                if not self._arriving:
                    break
                start = min(self._arriving)
                admitted = self._admit(start, self._arriving.pop(start))
                if admitted.any():
                    self._run_segment(start, admitted)
            else:
                raise LaneError(f"the kernel does not end ({_MOST_SEGMENTS} segments executed)")
        except LaneError as fault:
            raise self._current.error(fault.message + self._thread_name(fault.lane, first_block)) from None
        if self._held:
            raise self._deadlock()

    def _admit(self, start: int, arrived: np.ndarray) -> np.ndarray:
        if start in self._held:
            arrived = arrived | self._held.pop(start)
        if start not in self._gates:
            return arrived
        self._current = self._segments[start].gate
        admitted = self._gates[start](arrived, self._alive)
        if np.count_nonzero(admitted) < np.count_nonzero(arrived):
            self._held[start] = arrived & ~admitted
        return admitted

    def _run_segment(self, start: int, mask: np.ndarray) -> None:
        active = Active(mask, True if np.array_equal(mask, self._alive) else mask)
        for instruction, execute in self._steps[start]:
            self._current = instruction
            execute(active)
        if start in self._branches:
            self._branches[start](active)
        else:
            self._arrive(self._segments[start].stop, mask)

    def _arrive(self, index: int, mask: np.ndarray) -> None:
        """Lanes go on at an instruction; behind the last one they exit."""
        if index not in self._segments:
            self._exit(mask)
        elif index in self._arriving:
            self._arriving[index] = self._arriving[index] | mask
        else:
            self._arriving[index] = mask

    def _exit(self, mask: np.ndarray) -> None:
        self._alive = self._alive & ~mask
        held, self._held = self._held, {}
        for start, waiting in held.items():  # nobody has to wait for those that are gone
            self._arrive(start, waiting)

    def _branch(self, segment: program.Segment) -> Execute:
        branch = segment.branch
        go = self._exit
        if branch.opcode == "bra":
            target = program.target(branch, self._machine.kernel)
            go = lambda mask: self._arrive(target, mask)  # noqa: E731
        if not branch.predicate:
            return lambda active: go(active.mask)
        condition = self._machine.predicate(branch.predicate)
        check = self._checker(self._unproven.get(segment.stop, ()))

        def decide(active: Active) -> None:
            self._current = branch
            check(active)
            taken = active.mask & condition()
            stays = active.mask & ~taken
            if taken.any():
                go(taken)
            if stays.any():
                self._arrive(segment.stop + 1, stays)

        return decide

    def _step(self, index: int) -> tuple[Instruction, Execute]:
        """An instruction with its predicate and, where needed, with the book-keeping of written registers."""
        machine, instruction = self._machine, self._machine.kernel.instructions[index]
        execute = bind(machine, instruction)
        unproven = self._unproven.get(index, set())
        own_predicate = unproven.intersection(program.registers_of(instruction.predicate))
        recorded = [self._written[name] for name in program.writes(instruction) if name in self._written]
        if unproven - own_predicate:
            execute = _in_turn(self._checker(unproven - own_predicate), execute)
        if recorded:
            execute = _in_turn(execute, lambda active: [np.logical_or(w, active.mask, out=w) for w in recorded])
        if instruction.predicate:
            execute = _under(machine.predicate(instruction.predicate), execute)
        if own_predicate:
            execute = _in_turn(self._checker(own_predicate), execute)
        return instruction, execute

    def _checker(self, names: set[str]) -> Execute:
        written = [(name, self._written[name]) for name in sorted(names)]

        def check(active: Active) -> None:
            for name, lanes in written:
                if (missing := active.mask & ~lanes).any():
                    raise LaneError(f"register {name} is read before it is written", np.argmax(missing))

        return check

    def _thread_name(self, lane: int | None, first_block: int) -> str:
        if lane is None:
            return ""
        block, thread = divmod(lane, self._machine.lanes_per_block)
        return f" [block {first_block + block}, thread {thread}]"

    def _deadlock(self) -> PTXError:
        waiting = "; ".join(
            f"{np.count_nonzero(mask)} threads wait at {gate.location}: {gate.text}"
            for gate, mask in ((self._segments[start].gate, mask) for start, mask in self._held.items())
        )
        return PTXError(f"deadlock or divergent barrier in kernel {self._machine.kernel.name}: {waiting}")


def _in_turn(first: Execute, second: Execute) -> Execute:
    def both(active: Active) -> None:
        first(active)
        second(active)

    return both


def _under(condition: Callable[[], np.ndarray], execute: Execute) -> Execute:
    def execute_if(active: Active) -> None:
        chosen = active.where_true(condition())
        if chosen:
            execute(chosen)

    return execute_if
