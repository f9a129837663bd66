"""Several ranks, as torchrun starts them: each takes its share of every batch, and the first alone speaks and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Among the ranks of this machine; each has its own GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextmanager
def joined() -> Iterator[None]:
    """The process group, if there is more than one rank.

    All but the first are silent in it; the traceback of an error that ends one is printed outside.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    dist.init_process_group()
    try:
        with ExitStack() as stack:
            if rank() > 0:
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    finally:
        dist.destroy_process_group()


def group() -> dist.ProcessGroup | None:
    """For the loss, which takes the rows of all ranks for one batch."""
    return dist.group.WORLD if size() > 1 else None


def towers(model: nn.Module) -> nn.Module:
    """``model``, whose gradients are averaged over the ranks in each backward pass if there are several."""
    return DistributedDataParallel(model) if size() > 1 else model


def share(count: int) -> Tensor:
    """This rank's positions in a batch of ``count`` samples; the first ranks have one more if they do not come out even."""
    return torch.arange(count).tensor_split(size())[rank()]


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is set on any of the ranks. It waits for all of them."""
    if size() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU, whatever the model is on
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


@contextmanager
def one_first() -> Iterator[None]:
    """One rank of each machine, then the others: they find on disk what it put there."""
    if local_rank() > 0:
        any_rank(False)
    try:
        yield
    finally:
        if local_rank() == 0:
            any_rank(False)
