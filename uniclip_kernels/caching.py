"""Gradient caching (GradCache, Gao et al., arXiv 2101.06983): batches far beyond what the encoders' activations allow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def cached_backward(
    encode: Callable[[Any], Tensor | tuple[Tensor, ...]],
    chunks: Iterable[Any],
    loss_fn: Callable[..., Tensor],
    *,
    no_sync: Sequence[nn.Module] = (),
) -> Tensor:
    """The backward pass of a loss of the whole batch, with the activations of one chunk at a time.

    Each chunk is encoded without a graph; the loss of all embeddings gives their gradients; then each chunk is encoded again,
    with a graph, and these go on through it. Gradients of parameters are accumulated as by ``loss.backward()``, and are those
    of the plain step to rounding: PyTorch's random numbers (dropout) are the same both times, those of Python and NumPy are not.
    Buffers that an encoder updates, such as those of BatchNorm, are updated twice, and see one chunk at a time.

    Args:
        encode: takes a chunk and returns its embeddings, (n, D), or a tuple of such tensors (images and texts, say).
        chunks: whatever ``encode`` takes; of any sizes. They are all held, and asked for once.
        loss_fn: takes the embeddings of all chunks, one behind the other, (N, D) each, and returns a scalar. With a GradScaler:
            the scaled loss.
        no_sync: modules in DistributedDataParallel or FSDP, which exchange gradients at the last chunk alone.

    Returns:
        The loss, detached.

    Raises:
        TypeError, ValueError: for no chunks, for what ``encode`` or ``loss_fn`` should not return, for a module that cannot wait.

    ::

        loss = cached_backward(model, images.split(64), lambda z: criterion(z, sample_ids))
    """
    chunks = list(chunks)
    if not chunks:
        raise ValueError("chunks must hold at least one chunk, got none")
    for module in no_sync:
        if not (hasattr(module, "no_sync") or hasattr(module, "set_requires_gradient_sync")):
            raise TypeError(
                f"no_sync must hold modules in DistributedDataParallel or FSDP, got {type(module).__name__}"
            )
    states, found = [], []
    for chunk in chunks:
        states.append(_random_state())
        with torch.no_grad():
            found.append(_embeddings(encode(chunk)))
        if len(found[-1]) != len(found[0]):
            raise ValueError(
                f"encode must return as many tensors for each chunk, got {len(found[0])} and {len(found[-1])}"
            )
    torch.clear_autocast_cache()  # of weights that were cast without a graph
    with torch.enable_grad():
        whole = [torch.cat(parts).requires_grad_() for parts in zip(*found, strict=True)]
        loss = loss_fn(*whole)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            raise ValueError(f"loss_fn must return a scalar tensor, got {getattr(loss, 'shape', type(loss).__name__)}")
        loss.backward()
        after = _random_state()
        grads = [None if z.grad is None else z.grad.split([len(z) for z in of]) for z, of in _by_output(whole, found)]
        for place, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            _set_random_state(state)
            with contextlib.nullcontext() if place == len(chunks) - 1 else _waiting(no_sync):
                outputs = _embeddings(encode(chunk))
                pairs = [
                    (z, g[place]) for z, g in zip(outputs, grads, strict=True) if g is not None and z.requires_grad
                ]
                if pairs:
                    torch.autograd.backward([z for z, _ in pairs], [g for _, g in pairs])
    _set_random_state(after)
    return loss.detach()


def _by_output(whole: list[Tensor], found: list[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    return zip(whole, zip(*found, strict=True), strict=True)


def _embeddings(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = (value,) if isinstance(value, Tensor) else value
    if not isinstance(found, (tuple, list)) or not found or not all(isinstance(z, Tensor) for z in found):
        raise TypeError(f"encode must return a tensor or a tuple of tensors, got {type(value).__name__}")
    for z in found:
        if not z.is_floating_point():
            raise TypeError(f"encode must return floating-point tensors, got {z.dtype}")
    return tuple(found)


@contextlib.contextmanager
def _waiting(modules: Sequence[nn.Module]) -> Iterator[None]:
    """With gradients kept to this rank."""
    with contextlib.ExitStack() as stack:
        module: Any
        for module in modules:
            if hasattr(module, "no_sync"):
                stack.enter_context(module.no_sync())
            else:
                module.set_requires_gradient_sync(False)
                stack.callback(module.set_requires_gradient_sync, True)
        yield


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """Of the CPU and of every CUDA device, if any has been used."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    on_cpu, on_devices = state
    torch.set_rng_state(on_cpu)
    if on_devices:
        torch.cuda.set_rng_state_all(on_devices)
