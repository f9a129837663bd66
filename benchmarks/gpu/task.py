"""A piece of the work on a GPU, done in a process of its own: its crash or its end by the clock costs nothing but itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from ..devices import Device
from ..rows import Row, versions
from ..session import OurError


@dataclass(frozen=True)
class Check:
    """What was right or wrong, where no time was measured."""

    what: str
    dtype: str
    passed: int
    skipped: int = 0
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """What is to be said in the report, such as why something was left out."""

    text: str


@dataclass(frozen=True)
class Failure:
    text: str
    provider: str | None = None  # whose fault it is known to be


Result = Row | Check | Note


@dataclass
class Context:
    """What every task is told."""

    device: Device
    dry_run: bool
    run: str  # when it began
    out: Path
    deadline: float = float("inf")  # as time.time() counts
    arguments: list[str] = field(default_factory=list)  # for benchmarks.run
    unusable: dict[str, str] = field(default_factory=dict)  # backends and providers that failed, and how

    def seconds_left(self) -> float:
        return self.deadline - time.time()

    def row(self, **fields) -> Row:
        device = self.device
        return Row(
            device=device.name,
            machine=device.machine(),
            version=versions(device.has_triton),
            run=self.run,
            **{"extra_bytes": None, "note": ""} | fields,
        )


#: A task that takes so many times what was expected, and so many seconds, must not take the time of those after it; and none
#: may hang for ever.
PATIENCE, SHORTEST_LIMIT, LONGEST_LIMIT = 4, 60.0, 3600.0


@dataclass(frozen=True)
class Task:
    part: str
    title: str
    run: Callable[[Context], Iterator[Result]]
    seconds: float  # it is not begun with fewer left
    needs_build: bool = True
    backend: str | None = None  # whose figures are not to be trusted if this fails or is left out

    def __str__(self) -> str:
        return f"{self.part}: {self.title}"


def results(task: Task, context: Context) -> Iterator[Result | Failure]:
    """Each as soon as it is there; a Failure is the last. Raises TimeoutError at the deadline, or that of the task alone."""
    # Forked, so that PyTorch need not be imported again. The parent must not touch the GPU: a fork could not use it then.
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_in_child, args=(task, context, sender))
    child.start()
    sender.close()
    patience = max(SHORTEST_LIMIT, PATIENCE * task.seconds) if context.deadline < float("inf") else LONGEST_LIMIT
    deadline = min(context.deadline, time.time() + patience)
    try:
        while True:
            ready = wait([receiver, child.sentinel], max(deadline - time.time(), 0))
            if not ready:
                raise TimeoutError
            try:
                result = receiver.recv() if receiver.poll() else Failure(_how_it_ended(child))
            except EOFError:
                result = Failure(_how_it_ended(child))
            if result is None:
                return
            yield result
            if isinstance(result, Failure):
                return
    finally:
        _end(child)
        receiver.close()


def _in_child(task: Task, context: Context, sender: Connection) -> None:
    os.setsid()  # with all processes that it starts it can be ended at once
    if context.dry_run:
        torch.set_num_threads(1)
    try:
        for result in task.run(context):
            sender.send(result)
        sender.send(None)
    except Exception as error:
        traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        sender.send(Failure(text, error.provider if isinstance(error, OurError) else None))


def _how_it_ended(child) -> str:
    child.join(10)
    return f"its process ended with status {child.exitcode}"


def _end(child) -> None:
    child.join(0.5)  # it may have been about to end
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:  # not its own group yet
        child.kill()
    child.join()
