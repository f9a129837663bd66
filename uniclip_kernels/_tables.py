"""K x K tables over pairs of domains: how scalars and matrices given by the user become them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ._known import is_tracing


def full_table(value: float | Tensor, num_domains: int, like: Tensor) -> Tensor:
    """``value`` (a number, a tensor of one element or (K, K)) as a (K, K) tensor with the dtype and device of ``like``."""
    if not isinstance(value, Tensor):
        # A product, since torch.compile makes a variable of its number, and a new graph for each number that fills a tensor.
        return torch.ones(num_domains, num_domains, dtype=like.dtype, device=like.device) * float(value)
    return value.to(device=like.device, dtype=like.dtype).expand(num_domains, num_domains).contiguous()


def mirrored(*tables: Tensor) -> Tensor:
    """The (K, K) tables stacked, each with the lower triangle mirrored from the upper one."""
    stacked = torch.stack(tables).triu_()
    return stacked.add_(stacked.triu(1).mT)


def symmetric_table(value: float | Tensor, num_domains: int, like: Tensor) -> Tensor:
    """As :func:`full_table`, with the lower triangle mirrored from the upper one, which alone gets the gradient."""
    table = full_table(value, num_domains, like)
    return table.triu() + table.triu(1).T if num_domains > 1 and isinstance(value, Tensor) else table


def num_domains_of(*tables: float | Tensor | None) -> tuple[int, bool]:
    """K as told by the (K, K) arguments, and whether domains can be ignored: they make no difference if all are scalars."""
    for table in tables:
        if isinstance(table, Tensor) and table.ndim == 2:
            return table.shape[0], False
    return 1, True


def flat_of(table: Tensor) -> Tensor:
    """The upper triangle of a (K, K) table, row by row: (K (K + 1) / 2,)."""
    k = table.shape[0]
    return torch.cat([table[a, a:] for a in range(k)])


def symmetric_of(flat: Tensor, num_domains: int) -> Tensor:
    """The symmetric (K, K) table whose upper triangle is ``flat``."""
    places = _places if is_tracing() else _kept_places
    return flat[places(num_domains, flat.device)]


def _places(num_domains: int, device: torch.device) -> Tensor:
    """Where each entry of a symmetric (K, K) table is in its flat form."""
    a = torch.arange(num_domains, device=device)
    low, high = torch.minimum(a[:, None], a), torch.maximum(a[:, None], a)
    return low * num_domains - low * (low + 1) // 2 + high


@functools.cache  # never dropped, since CUDA graphs may read it
def _kept_places(num_domains: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it will be used in training too
        return _places(num_domains, device)
