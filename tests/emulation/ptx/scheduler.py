"""Runs a chunk of the grid: all threads that stand at the same segment together, the lowest segment first.

Taking the lowest first makes threads that diverged meet again: those that left a loop wait, further down in the text,
for those still in it.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from threading import Lock

import numpy as np

from .active import Active
from .errors import LaneError, PTXError
from .gates import gate
from .instructions import bind
from .machine import Launch, Machine
from .program import Program, Segment, target, writes
from .syntax import Instruction, registers_of

_MOST_SEGMENTS = 1_000_000  # a chunk that runs more of them is taken to hang

Execute = Callable[[Active], None]


class Scheduler:
    """Binds a program to a machine, and runs launches of it."""

    def __init__(self, machine: Machine, program: Program):
        self._machine, self._segments, self._unproven = machine, program.segments, program.unproven_reads
        self._lock = Lock()
        tracked = {name for names in self._unproven.values() for name in names}
        self._written = {name: np.zeros(machine.lane_count, bool) for name in tracked}
        self._gates = {start: gate(machine, segment.gate) for start, segment in self._segments.items() if segment.gate}
        self._steps = {
            start: [self._step(index) for index in range(start, segment.stop)]
            for start, segment in self._segments.items()
        }
        self._branches = {start: self._branch(segment) for start, segment in self._segments.items() if segment.branch}

    def run(self, launch: Launch) -> None:
        """Executes all blocks of a launch, as many at once as the machine has room for."""
        with self._lock:
            try:
                for first_block in range(0, prod(launch.grid), self._machine.blocks):
                    self._run_chunk(launch, first_block)
            finally:
                self._machine.launch = None  # lets go of its buffers

    def _run_chunk(self, launch: Launch, first_block: int) -> None:
        for written in self._written.values():
            written.fill(False)
        self._alive = self._machine.start(launch, first_block)
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
        except LaneError as error:
            raise self._current.error(error.message + self._thread_name(error.lane, first_block)) from None
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

    def _branch(self, segment: Segment) -> Execute:
        branch = segment.branch
        is_exit = branch.opcode != "bra"
        go = self._exit if is_exit else partial(self._arrive, target(branch, self._machine.kernel))
        if not branch.predicate:
            return lambda active: go(active.mask)
        condition = self._machine.predicate(branch.predicate)
        check = self._checker(self._unproven.get(segment.stop, set()))

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
        instruction = self._machine.kernel.instructions[index]
        guard = registers_of(instruction.predicate)
        unproven = self._unproven.get(index, set())
        execute = bind(self._machine, instruction)
        if names := unproven.difference(guard):
            execute = _in_turn(self._checker(names), execute)
        if names := self._written.keys() & writes(instruction):
            execute = _in_turn(execute, self._recorder(names))
        if instruction.predicate:
            execute = _under(self._machine.predicate(instruction.predicate), execute)
        if names := unproven.intersection(guard):
            execute = _in_turn(self._checker(names), execute)
        return instruction, execute

    def _recorder(self, names: set[str]) -> Execute:
        def record(active: Active) -> None:
            for name in names:
                self._written[name] |= active.mask

        return record

    def _checker(self, names: set[str]) -> Execute:
        def check(active: Active) -> None:
            for name in names:
                if (missing := active.mask & ~self._written[name]).any():
                    raise LaneError(f"register {name} is read before it is written", np.argmax(missing))

        return check

    def _thread_name(self, lane: int | None, first_block: int) -> str:
        if lane is None:
            return ""
        block, thread = divmod(lane, self._machine.lanes_per_block)
        return f" [block {first_block + block}, thread {thread}]"

    def _deadlock(self) -> PTXError:
        gates = [(self._segments[start].gate, np.count_nonzero(mask)) for start, mask in self._held.items()]
        waiting = "".join(f"\n  {count} threads wait at {gate.location}: {gate.text}" for gate, count in gates)
        return PTXError(f"deadlock or divergent barrier in kernel {self._machine.kernel.name}:{waiting}")


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
