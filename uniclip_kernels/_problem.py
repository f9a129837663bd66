"""One instance of the loss, sorted and gathered: what every kernel reads."""

from __future__ import annotations

from typing import NamedTuple

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
