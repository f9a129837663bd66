"""The loss of rows in many small domains, for which tiles of one domain pair would be mostly empty: chunks of rows in PyTorch.

It has the work of plain PyTorch, and memory linear in M: each chunk of rows meets all others, with table entries looked up for
every pair. Slot i of the statistics is input row i.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._problem import Statistics, Tables, accumulator_dtype

_ELEMENTS = 1 << 18  # pairs of rows in a chunk: some ten matrices of them live at a time


class _Rows(NamedTuple):
    unit: Tensor  # (M, D) in the accumulator dtype, sorted by domain, padding last
    norm: Tensor  # (M, 1), at least 1e-12
    samples: Tensor  # (M,), negative for padding
    domains: Tensor  # (M,) ascending, K for padding
    order: Tensor  # (M,), the input row of each

    def of_pairs(self, table: Tensor, i: slice) -> Tensor:
        """The entry of a (K, K) table for each of the rows i with each of all rows; any for padding."""
        domains = self.domains.clamp(max=len(table) - 1)
        return table[domains[i]].index_select(1, domains)


class _Chunk(NamedTuple):
    """Some rows against all: matrices of (rows, M)."""

    rows: slice
    s: Tensor
    positive: Tensor
    negative: Tensor


def forward(
    z: Tensor, sample_ids: Tensor, domain_ids: Tensor | None, tables: Tables, normalize: bool, slots: int
) -> Statistics:
    rows = _sorted(z, sample_ids, domain_ids, len(tables.temperature), normalize)
    statistics = Statistics(*(rows.unit.new_zeros(slots, dtype=_dtype(rows, f)) for f in Statistics._fields))
    for chunk in _chunks(rows, tables):
        at = rows.order[chunk.rows]
        lse = chunk.s.masked_fill(~chunk.negative, -torch.inf).logsumexp(1)
        weight = rows.of_pairs(tables.weight, chunk.rows).masked_fill_(~chunk.positive, 0)
        margin = lse[:, None] - chunk.s
        statistics.lse[at] = lse
        statistics.loss[at] = (-F.logsigmoid(-margin)).masked_fill(~chunk.positive, 0).mul_(weight).sum(1)
        statistics.slope[at] = margin.sigmoid().masked_fill(~chunk.positive, 0).mul_(weight).sum(1)
        statistics.count[at] = chunk.positive.sum(1, dtype=torch.int32)
    return statistics


def backward(
    z: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    tables: Tables,
    statistics: Statistics,
    share: Tensor,
    normalize: bool,
    need_embeddings: bool,
) -> tuple[Tensor | None, Tensor]:
    """The gradient of z, in the accumulator dtype, and the sums of H as ``Backend.similarity_grad`` has them."""
    rows = _sorted(z, sample_ids, domain_ids, len(tables.temperature), normalize)
    k = len(tables.temperature)
    sums = rows.unit.new_zeros(2, 2, k, k)  # of negatives and positives, H and H s
    lse, slope, share = (x[rows.order] for x in (statistics.lse, statistics.slope, share))
    coefficient = slope * share
    edges = torch.searchsorted(rows.domains, torch.arange(k + 1, device=z.device))
    grad = torch.zeros_like(rows.unit) if need_embeddings else None
    for chunk in _chunks(rows, tables):
        i, s = chunk.rows, chunk.s
        forth, back = lse[i, None] - s, lse - s
        negative = forth.neg().exp().mul_(coefficient[i, None]).add_(back.neg().exp().mul_(coefficient))
        negative.masked_fill_(~chunk.negative, 0)
        positive = forth.sigmoid().mul_(share[i, None]).mul_(rows.of_pairs(tables.weight, i))
        positive.add_(back.sigmoid().mul_(share).mul_(rows.of_pairs(tables.weight.T, i))).neg_().masked_fill_(
            ~chunk.positive, 0
        )
        del forth, back
        inside = (edges.clamp(i.start, i.stop) - i.start).diff()
        for part, h in zip(sums, (negative, positive), strict=True):
            for q in range(2):
                part[q] += _by_domains(h * s if q else h, inside, edges.diff())
        if grad is not None:
            grad[rows.order[i]] = negative.add_(positive).div_(rows.of_pairs(tables.temperature, i)) @ rows.unit
    # Every pair was met from both sides: once in each triangle, twice on the diagonal.
    sums.triu_().diagonal(dim1=-2, dim2=-1).mul_(0.5)
    if grad is not None and normalize:
        unit = torch.empty_like(rows.unit).index_copy_(0, rows.order, rows.unit)
        norm = torch.empty_like(rows.norm).index_copy_(0, rows.order, rows.norm)
        along = (grad * unit).sum(1, keepdim=True).masked_fill_(norm <= 1e-12, 0)  # there it is divided by a constant
        grad.addcmul_(unit, along, value=-1).div_(norm)
    return grad, sums.permute(0, 2, 3, 1)


def _sorted(z: Tensor, sample_ids: Tensor, domain_ids: Tensor | None, num_domains: int, normalize: bool) -> _Rows:
    padding = sample_ids < 0
    if domain_ids is None:
        domain_ids = torch.zeros_like(sample_ids)
    # Ids out of range may not have been looked for: whatever they are, nothing is read out of bounds.
    domains = domain_ids.long().clamp(0, num_domains - 1).masked_fill(padding, num_domains)
    domains, order = domains.sort(stable=True)
    unit = z.to(accumulator_dtype(z.dtype)).masked_fill(padding[:, None], 0)[order]
    norm = torch.ones_like(unit[:, :1])
    if normalize:
        norm = unit.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        unit.div_(norm)
    return _Rows(unit, norm, sample_ids.long()[order], domains, order)


def _chunks(rows: _Rows, tables: Tables) -> Iterator[_Chunk]:
    m = len(rows.unit)
    row = torch.arange(m, device=rows.unit.device)
    step = max(_ELEMENTS // max(m, 1), 1)
    for start in range(0, m, step):
        i = slice(start, min(start + step, m))
        s = (
            (rows.unit[i] @ rows.unit.T)
            .sub_(rows.of_pairs(tables.offset, i))
            .div_(rows.of_pairs(tables.temperature, i))
        )
        comparable = (rows.samples[i, None] >= 0) & (rows.samples >= 0)
        if tables.domain_mask is not None:
            comparable &= rows.of_pairs(tables.domain_mask, i)
        same = rows.samples[i, None] == rows.samples
        positive = (same & comparable).logical_and_(row[i, None] != row)
        yield _Chunk(i, s, positive, comparable & ~same)


def _by_domains(matrix: Tensor, row_counts: Tensor, column_counts: Tensor) -> Tensor:
    """(K, K) sums over domains of rows and of columns, both of which ascend; those behind all domains are left out."""
    by_column = torch.segment_reduce(
        matrix.T.contiguous(), "sum", lengths=_whole(column_counts, matrix.shape[1]), unsafe=True
    )[:-1]
    by_both = torch.segment_reduce(
        by_column.T.contiguous(), "sum", lengths=_whole(row_counts, matrix.shape[0]), unsafe=True
    )
    return by_both[:-1]


def _whole(counts: Tensor, total: int) -> Tensor:
    """With the rest of the total behind."""
    return torch.cat([counts, (total - counts.sum())[None]])


def _dtype(rows: _Rows, field: str) -> torch.dtype:
    return torch.int32 if field == "count" else rows.unit.dtype
