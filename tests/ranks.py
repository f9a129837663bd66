"""Processes of a Gloo group on this machine, which run functions side by side, and what one of them sends meanwhile."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from uniclip_kernels import _exchange

TIMEOUT = 60.0  # seconds


class RankError(Exception):
    """What was raised on a rank: its type's name and its message, then the traceback."""


class Ranks:
    def __init__(self, connections: list) -> None:
        self._connections = connections

    def __call__(self, function: Callable, *args: Any) -> list[Any]:
        """``function(*args)`` on every rank, in order; what a rank raised is in its place as a RankError."""
        for connection in self._connections:
            connection.send((function, args))
        return [self._answer(connection) for connection in self._connections]

    @staticmethod
    def _answer(connection) -> Any:
        if not connection.poll(2 * TIMEOUT):
            return RankError("no answer in time")
        try:
            return connection.recv()
        except EOFError:
            return RankError("the process ended")


def all_right(found: list) -> list:
    """What was found, unless a rank raised an error: then that."""
    for result in found:
        if isinstance(result, RankError):
            raise result
    return found


@contextlib.contextmanager
def ranks(size: int, timeout: float = TIMEOUT, start: str = "forkserver") -> Iterator[Ranks]:
    """``start``: "spawn" for processes that see the environment of now before they import anything."""
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["tests.ranks"])
    with tempfile.TemporaryDirectory() as folder:
        pairs = [context.Pipe() for _ in range(size)]
        store = Path(folder, "store").as_uri()
        started = [
            context.Process(target=_serve, args=(theirs, store, rank, size, timeout), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in started:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        yield Ranks([ours for ours, _ in pairs])
        for ours, _ in pairs:
            ours.close()
        for process in started:
            process.join(5)
            process.kill()


def _serve(connection, store: str, rank: int, size: int, timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store, datetime.timedelta(seconds=timeout), rank=rank, world_size=size)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            result = function(*args)
        except Exception as error:
            result = RankError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        connection.send(result)


#: Bytes that a rank sends for each collective, as Gloo and NCCL do it in a ring; ``size`` is that of the group.
_SENT = {
    (_exchange, "_all_gather"): lambda size, out, mine, **_: (size - 1) * mine.nbytes,
    (dist, "all_gather"): lambda size, out, mine, **_: (size - 1) * mine.nbytes,
    (dist, "all_reduce"): lambda size, tensor, *_, **__: 2 * (size - 1) * tensor.nbytes // size,
    (dist, "scatter"): lambda size, out, parts, *_, **__: (size - 1) * parts[0].nbytes if parts else 0,
    (dist, "all_to_all"): lambda size, out, parts, **_: (size - 1) * parts[0].nbytes,
    (dist, "batch_isend_irecv"): lambda size, operations: sum(
        o.tensor.nbytes for o in operations if o.op is dist.isend
    ),
}


@contextlib.contextmanager
def bytes_sent() -> Iterator[list[int]]:
    """By this rank, one entry for each collective that is called within; parts of a scatter are of one size."""
    sent: list[int] = []

    def counted(call: Callable, rule: Callable[..., int]) -> Callable:
        def wrapper(*args: Any, **options: Any) -> Any:
            sent.append(rule(dist.get_world_size(options.get("group")), *args, **options))
            return call(*args, **options)

        return wrapper

    with contextlib.ExitStack() as patches:
        for (module, name), rule in _SENT.items():
            patches.enter_context(mock.patch.object(module, name, counted(getattr(module, name), rule)))
        yield sent
