"""What the host knows of the values of a tensor on a device, so that it need not wait for that device to read them.

It is void once PyTorch has written to the tensor. What is being traced knows nothing: a graph serves other values too. What the
host does not know it can ask for, without waiting until it needs the answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

_facts = WeakTensorKeyDictionary()  # what is known of each tensor, and which version of it that is of


class _Copies(NamedTuple):
    values: list[Tensor]
    arrived: torch.cuda.Event | None  # None of a tensor that is on the host as it is


def keep(tensor: Tensor, fact: Any) -> None:
    """Say what the values of ``tensor`` come to; what that is, is between those who keep and ask."""
    if not is_traced(tensor):
        _facts[tensor] = fact, tensor._version


def kept(tensor: Tensor) -> Any:
    """What was kept of ``tensor`` if it still holds, or None."""
    if is_traced(tensor):
        return None
    fact, version = _facts.get(tensor, (None, None))
    return fact if version == tensor._version else None


def ask(tensor: Tensor, *more: Tensor) -> None:
    """Have the values of ``tensor``, and of more that belongs to it, copied to the host when its device comes to it."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    copies = [
        torch.empty_like(t, device="cpu", pin_memory=t.is_cuda).copy_(t, non_blocking=True) for t in (tensor, *more)
    ]
    arrived = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None
    keep(tensor, _Copies(copies, arrived))


def answer(tensor: Tensor) -> list[list] | None:
    """What was asked, tensor by tensor. Waits for those copies and for nothing that was queued after them."""
    copies = kept(tensor)
    if copies is None or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    if copies.arrived is not None:
        copies.arrived.synchronize()
    return [t.tolist() for t in copies.values]


def is_traced(tensor: Tensor) -> bool:
    """Whether it stands for other values, or does not count how often it was written to."""
    return is_tracing() or type(tensor) is not Tensor or tensor.is_inference()


def is_tracing() -> bool:
    """Whether tensors that are made now may be no real ones."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None
