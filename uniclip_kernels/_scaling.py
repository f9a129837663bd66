"""The gradient of similarities in a narrow dtype: kept near 1 there, whatever its size, and multiplied by a factor at the end."""

from __future__ import annotations

import torch
from torch import Tensor


def is_narrow(rows: Tensor) -> bool:
    """H / τ is kept in the dtype of the rows, and these two have no room for weights of any size."""
    return rows.dtype in (torch.float16, torch.int16)


def gain_of(largest: Tensor, temperature: Tensor) -> Tensor:
    """A power of two that brings the largest H / τ to about 2^14."""
    bound = largest / temperature.amin()
    return torch.where(bound > 0, torch.exp2(14 - bound.log2().ceil()), 1.0)


def table_gradients(h: Tensor, h_s: Tensor, factor: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of temperature and offset from the sums of H and of H s over each pair of domains."""
    grad_offset, grad_temperature = (x.to(temperature.dtype).mul(-factor).div_(temperature) for x in (h, h_s))
    return grad_temperature, grad_offset
