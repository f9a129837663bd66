"""One instance of the loss, sorted and gathered: what every kernel reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._layout import Known, Layout


class Tables(NamedTuple):
    """(K, K) each, by pairs of domains."""

    temperature: Tensor  # in the accumulator dtype, symmetric
    offset: Tensor  # likewise
    weight: Tensor  # anchor domain x positive domain
    domain_mask: Tensor | None  # bool, symmetric


class Problem(NamedTuple):
    rows: Tensor  # (R, padded D): gathered unit rows in the compute dtype
    inv_norm: Tensor  # (R,): 1 / max(norm, 1e-12) of each
    layout: Layout
    temperature: Tensor  # as in Tables
    offset: Tensor
    weight: Tensor
    domain_mask: Tensor | None
    known: Known


class Statistics(NamedTuple):
    """What one number a slot says of its row, (R,) each."""

    lse: Tensor  # ν: log-sum-exp over the negatives, -inf where there are none
    loss: Tensor  # Σ_p w softplus(ν - s_p) over the positives
    slope: Tensor  # Σ_p w σ(ν - s_p), its derivative by ν
    count: Tensor  # int32, how many positives there are


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the sums and of the loss, for rows of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
