"""K x K tables over pairs of domains: how scalars and matrices given by the user become them."""

from __future__ import annotations

import torch
from torch import Tensor


def full_table(value: float | Tensor, num_domains: int, like: Tensor) -> Tensor:
    """``value`` (a float, a 0-dim tensor or (K, K)) as a (K, K) tensor with the dtype and device of ``like``."""
    if not isinstance(value, Tensor):
        return torch.full((num_domains, num_domains), float(value), dtype=like.dtype, device=like.device)
    return value.to(device=like.device, dtype=like.dtype).expand(num_domains, num_domains).contiguous()


def mirrored(*tables: Tensor) -> Tensor:
    """The (K, K) tables stacked, each with the lower triangle mirrored from the upper one."""
    stacked = torch.stack(tables)
    return stacked.triu() + stacked.triu(1).mT


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
