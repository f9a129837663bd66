"""What travels between the public functions, the operators, the engine and the backends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._layout import Layout
from ._panels import Panel


class Inputs(NamedTuple):
    """The tensors of a call. Tables are (K, K); own rows (M, D) are anchors, candidates (Q, D) are only compared with."""

    embeddings: Tensor
    sample_ids: Tensor  # (M,)
    domain_ids: Tensor | None
    exclude_ids: Tensor | None
    candidates: Tensor | None
    candidate_sample_ids: Tensor | None  # (Q,), as are the next two
    candidate_domain_ids: Tensor | None
    candidate_exclude_ids: Tensor | None
    temperature: Tensor  # in the accumulator dtype; of this and the next only the upper triangle counts
    offset: Tensor
    weight: Tensor  # anchor domain x positive domain
    domain_mask: Tensor | None  # bool, symmetric


class Options(NamedTuple):
    objective: str
    normalize: bool
    ignore_domains: bool  # all tables are of one number, and domains make no difference
    domain_sizes: Sequence[int] | None  # K: own rows of each domain, padding among them, if the host knows
    allowed_pairs: Sequence[bool] | None  # K * K: the domain mask, if the host knows
    backend: str
    identity: str  # of the backend: see Backend.identity


class SimilarityInputs(NamedTuple):
    x: Tensor  # (Mx, D)
    y: Tensor  # (My, D)
    x_domain_ids: Tensor | None
    y_domain_ids: Tensor | None
    temperature: Tensor  # (K, K) in the accumulator dtype, symmetric
    offset: Tensor  # likewise


class SimilarityOptions(NamedTuple):
    normalize: bool
    ignore_domains: bool
    backend: str
    identity: str


class Tables(NamedTuple):
    """(K, K) each, by pairs of domains; (S K, S K) for S sets of rows, each of which has domains of its own."""

    temperature: Tensor  # in the accumulator dtype, symmetric
    offset: Tensor  # likewise
    weight: Tensor  # anchor domain x positive domain
    domain_mask: Tensor | None  # bool, symmetric


class Groups(NamedTuple):
    """Numbers of slots that ascend within a domain, -1 where empty: equal ones belong together."""

    ids: Tensor  # (R,) int32
    tiles: Tensor  # (R / block, 4) int32: domain (-1: empty tile), filled slots, first and last number


class Objective(NamedTuple):
    """What tells the objectives apart for a kernel.

    negatives "softmax": ν_i = log Σ_n e^{s_in}          H_in = e^{s_in - lse_i} coefficient_i + the same of n
              "sigmoid": Σ_n softplus(s_in)              H_in = σ(s_in) coefficient_i + the same of n
    positives "sigmoid": Σ_p w softplus(base_i - s_ip)   H_ip = -w_ip σ(base_i - s_ip) share_i + the same of p
              "softmax": π_i = log Σ_p e^{s_ip}          H_ip = e^{s_ip - base_i} slope_i - w_ip share_i + the same of p
    """

    name: str
    negatives: str
    positives: str


class Negatives(NamedTuple):
    """Sums over the negatives of each slot, (R,) each, for negatives "softmax" / "sigmoid"."""

    total: Tensor  # ν, -inf where there is none    / Σ softplus(s_n)
    top: Tensor  # (0,): unused                   / the largest s_n, -inf where there is none


class Positives(NamedTuple):
    """Sums over the positives p of each slot, (R,) each, for positives "sigmoid" / "softmax"."""

    loss: Tensor  # Σ w softplus(base - s_p)    / π, -inf where there is none
    slope: Tensor  # Σ w σ(base - s_p)           / Σ w
    s: Tensor  # (0,): unused                / Σ w s_p
    count: Tensor  # int32


class Statistics(NamedTuple):
    """What one number a slot says of its row, (R,) each; see ``_objectives``."""

    lse: Tensor
    base: Tensor
    slope: Tensor
    count: Tensor  # int32


class Terms(NamedTuple):
    """What weighs the terms of H of a row, (R,) each; see ``Objective``."""

    lse: Tensor
    coefficient: Tensor
    base: Tensor  # -inf without positives: e^{s - base} is then to be 0, whatever s is
    slope: Tensor
    share: Tensor

    def scaled(self, factor: Tensor) -> Terms:
        coefficient, slope, share = (x * factor for x in (self.coefficient, self.slope, self.share))
        return Terms(self.lse, coefficient, self.base, slope, share)


class Problem(NamedTuple):
    """One instance of the loss, sorted and gathered: what every kernel reads."""

    objective: Objective
    rows: Tensor  # (R, padded D): unit rows in the dtype of the products, own ones before candidates
    inv_norm: Tensor  # (R,): 1 / max(norm, 1e-12) of each
    layout: Layout
    edges: Sequence[int]  # where the slots of each set of rows end; own rows come first, and they alone are anchors
    met: Collection[tuple[int, int]]  # which sets, the former before the latter, are compared
    excluded: Groups  # rows of one group are no negatives of each other
    same: Groups  # rows of one group are positives of each other
    tables: Tables
    panels: Sequence[Panel]
    allowed: Sequence[Sequence[bool]] | None  # the (K, K) domain mask, if the host knows

    @property
    def own_slots(self) -> int:
        return self.edges[0]


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the sums and of the loss, for rows of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
