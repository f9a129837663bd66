"""Own rows and candidates as one set of rows, with the ids that tell which of them are compared."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._problem import Inputs, Tables


class Rows(NamedTuple):
    """N = M + Q rows, candidates behind own ones."""

    own: int  # M
    z: Tensor  # (N, D)
    sample_ids: Tensor  # (N,) int64, negative for padding
    domain_ids: Tensor | None  # (N,) int64 in [0, K), in [K, 2 K) for candidates; None: all in domain 0
    group_ids: Tensor | None  # (N,) int32, ascending with sample ids: rows of one group are no negatives of each other


def all_rows(inputs: Inputs, ignore_domains: bool) -> Rows:
    z, samples, k = inputs.embeddings, inputs.sample_ids.long(), inputs.temperature.shape[0]
    m = z.shape[0]
    domains = None if ignore_domains else inputs.domain_ids
    if domains is not None:
        domains = _in_range(domains, k)
    excluded = inputs.exclude_ids
    if inputs.candidates is not None:
        samples = torch.cat([samples, inputs.candidate_sample_ids.long()])
        of_candidates = None if ignore_domains else inputs.candidate_domain_ids
        q = inputs.candidates.shape[0]
        domains = torch.cat(
            [
                samples.new_zeros(m) if domains is None else domains,
                samples.new_full((q,), k) if of_candidates is None else _in_range(of_candidates, k) + k,
            ]
        )
        if is_grouped(inputs):
            both = (excluded, m), (inputs.candidate_exclude_ids, q)
            excluded = torch.cat([samples.new_full((n,), -1) if e is None else e.long() for e, n in both])
        z = torch.cat([z, inputs.candidates])
    groups = None
    if excluded is not None:
        samples, groups = _numbered_by_group(samples, excluded.long())
    return Rows(m, z, samples, domains, groups)


def is_grouped(inputs: Inputs) -> bool:
    return inputs.exclude_ids is not None or inputs.candidate_exclude_ids is not None


def tables_of(symmetric: Tensor, inputs: Inputs) -> Tables:
    """The tables by pairs of domains; with candidates, (2 K, 2 K) ones in which own rows and candidates have the same entries."""
    tables = Tables(*symmetric, inputs.weight, inputs.domain_mask)
    if inputs.candidates is None:
        return tables
    return Tables(*(None if t is None else t.repeat(2, 2) for t in tables))


def _in_range(domains: Tensor, num_domains: int) -> Tensor:
    """Ids out of range may not have been looked for: whatever they are, nothing is read or written out of bounds."""
    return domains.long().clamp(0, num_domains - 1)


def _numbered_by_group(samples: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """New sample ids, in whose order groups follow each other, and the groups: samples of one exclusion id >= 0, or one alone."""
    n = len(samples)
    padding = samples < 0
    number, exclusion = _numbered(samples), _numbered(excluded)
    group = torch.where(excluded >= 0, exclusion, n + number)
    return (group * n + number).masked_fill(padding, -1), group.int()


def _numbered(ids: Tensor) -> Tensor:
    """Equal ids as equal numbers in [0, N), in the order of the ids."""
    ordered = ids.sort().values
    return torch.searchsorted(ordered, ids)
