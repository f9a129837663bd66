"""One instance of the loss, sorted and gathered: what every kernel reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._layout import Known, Layout


class Problem(NamedTuple):
    rows: Tensor  # (R, padded D): gathered unit rows in the compute dtype
    layout: Layout
    temperature: Tensor  # (K, K) in the accumulator dtype, symmetric
    offset: Tensor  # (K, K), likewise
    weight: Tensor  # (K, K), anchor domain x positive domain
    domain_mask: Tensor | None  # (K, K) bool, symmetric
    known: Known


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the sums and of the loss, for rows of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
