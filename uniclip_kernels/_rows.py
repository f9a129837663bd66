"""Sets of rows as one: own rows, which are anchors, and those that they are compared with, such as candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._problem import Inputs, Tables


class RowSet(NamedTuple):
    """N rows, with ids as the user gives them."""

    z: Tensor  # (N, D)
    sample_ids: Tensor
    domain_ids: Tensor | None
    exclude_ids: Tensor | None


class Rows(NamedTuple):
    """N rows of one or more sets, one set behind the other; the first one is that of own rows."""

    counts: Sequence[int]  # rows of each set
    z: Tensor  # (N, D)
    sample_ids: Tensor  # (N,) int64, negative for padding
    domain_ids: Tensor | None  # (N,) int64, in [s K, (s + 1) K) for set s; None: all in domain 0 of one set
    group_ids: Tensor | None  # (N,) int32, ascending with sample ids: rows of one group are no negatives of each other

    @property
    def own(self) -> int:
        return self.counts[0]


def sets_of(inputs: Inputs) -> list[RowSet]:
    own = RowSet(inputs.embeddings, inputs.sample_ids, inputs.domain_ids, inputs.exclude_ids)
    if inputs.candidates is None:
        return [own]
    ids = inputs.candidate_sample_ids, inputs.candidate_domain_ids, inputs.candidate_exclude_ids
    return [own, RowSet(inputs.candidates, *ids)]


def joined(sets: Sequence[RowSet], num_domains: int, ignore_domains: bool) -> Rows:
    counts = [s.z.shape[0] for s in sets]
    samples = _cat([s.sample_ids.long() for s in sets])
    domains = None
    if len(sets) > 1 or not (ignore_domains or sets[0].domain_ids is None):
        domains = _domains_of(sets, num_domains, ignore_domains)
    groups = None
    if is_grouped(sets):
        excluded = (
            torch.full_like(s.sample_ids, -1, dtype=torch.int64) if s.exclude_ids is None else s.exclude_ids.long()
            for s in sets
        )
        samples, groups = _numbered_by_group(samples, _cat(list(excluded)))
    return Rows(counts, _cat([s.z for s in sets]), samples, domains, groups)


def filled_of(sets: Sequence[RowSet], num_domains: int, ignore_domains: bool) -> Tensor:
    """(S, K): how many rows but padding each domain of each set has."""
    is_padding = _cat([s.sample_ids < 0 for s in sets])
    domains = _domains_of(sets, num_domains, ignore_domains).masked_fill(is_padding, len(sets) * num_domains)
    return torch.bincount(domains, minlength=len(sets) * num_domains + 1)[:-1].view(len(sets), num_domains)


def _domains_of(sets: Sequence[RowSet], num_domains: int, ignore_domains: bool) -> Tensor:
    """Of all rows, in [s K, (s + 1) K) for set s."""
    return _cat(
        [
            s.sample_ids.new_full((s.z.shape[0],), at * num_domains, dtype=torch.int64)
            if ignore_domains or s.domain_ids is None
            else _in_range(s.domain_ids, num_domains) + at * num_domains
            for at, s in enumerate(sets)
        ]
    )


def is_grouped(sets: Sequence[RowSet]) -> bool:
    return any(s.exclude_ids is not None for s in sets)


def tables_of(tables: Tables, num_sets: int) -> Tables:
    """(S K, S K) tables in which all sets of rows have the same entries."""
    if num_sets == 1:
        return tables
    return Tables(*(None if t is None else t.repeat(num_sets, num_sets) for t in tables))


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
