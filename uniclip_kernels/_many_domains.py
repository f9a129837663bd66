"""The loss of rows in many small domains, for which tiles of one domain pair would be mostly empty: chunks of rows in PyTorch.

It has the work of plain PyTorch, and memory linear in the rows: each chunk of own rows meets all others, with table entries
looked up for every pair. Slot i of the statistics is row i.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _objectives
from ._problem import Negatives, Objective, Positives, Statistics, Tables, Terms, accumulator_dtype
from ._rows import Rows

_ELEMENTS = 1 << 18  # pairs of rows in a chunk: some ten matrices of them live at a time


class _Sorted(NamedTuple):
    """Own rows and behind them candidates, each sorted by domain, with padding last."""

    own: int
    unit: Tensor  # (N, D) in the accumulator dtype
    norm: Tensor  # (N, 1), at least 1e-12
    samples: Tensor  # (N,), negative for padding
    groups: Tensor  # (N,)
    domains: Tensor  # (N,) ascending, K for padding; of candidates K + 1 more
    order: Tensor  # (N,), the row of each

    def of_pairs(self, table: Tensor, i: slice) -> Tensor:
        """The entry of a (K, K) table for each of the rows i with each of all rows; any for padding."""
        k = len(table)
        domains = (self.domains % (k + 1)).clamp_(max=k - 1)
        return table[domains[i]].index_select(1, domains)


def forward(objective: Objective, rows: Rows, tables: Tables, normalize: bool, slots: int) -> tuple[Tensor, Statistics]:
    """The loss of each slot and its statistics, as ``_objectives.of_rows`` has them."""
    found = _sort(rows, len(tables.temperature), normalize)

    def empty(value: float = 0.0, dtype: torch.dtype = found.unit.dtype) -> Tensor:
        return found.unit.new_full((slots,), value, dtype=dtype)

    softmax = objective.positives == "softmax"
    negatives = Negatives(empty(-torch.inf if objective.negatives == "softmax" else 0.0), empty(-torch.inf))
    positives = Positives(empty(-torch.inf if softmax else 0.0), empty(), empty(), empty(0, torch.int32))
    for s, positive, negative, i in _of_chunks(found, tables):
        at = found.order[i]
        if objective.negatives == "softmax":
            negatives.total[at] = s.masked_fill(~negative, -torch.inf).logsumexp(1)
        else:
            negatives.total[at] = F.logsigmoid(-s).neg_().masked_fill_(~negative, 0).sum(1)
            negatives.top[at] = s.masked_fill(~negative, -torch.inf).amax(1)
        weight = found.of_pairs(tables.weight, i).masked_fill_(~positive, 0)
        positives.count[at] = positive.sum(1, dtype=torch.int32)
        if softmax:
            positives.loss[at] = s.masked_fill(~positive, -torch.inf).logsumexp(1)
            positives.slope[at] = weight.sum(1)
            positives.s[at] = s.masked_fill(~positive, 0).mul_(weight).sum(1)
        else:
            base = negatives.total[at, None] if objective.negatives == "softmax" else torch.zeros_like(s[:, :1])
            margin = base - s
            positives.loss[at] = F.logsigmoid(-margin).neg_().masked_fill_(~positive, 0).mul_(weight).sum(1)
            positives.slope[at] = margin.sigmoid_().masked_fill_(~positive, 0).mul_(weight).sum(1)
    return _objectives.of_rows(objective, negatives, positives)


def backward(
    objective: Objective,
    rows: Rows,
    tables: Tables,
    terms: Terms,
    normalize: bool,
    need_embeddings: bool,
    need_candidates: bool,
) -> tuple[Tensor | None, Tensor]:
    """The gradient of z in the accumulator dtype, or None if none is needed, and the sums of H of ``Backend.similarity_grad``."""
    k = len(tables.temperature)
    found = _sort(rows, k, normalize)
    sums = found.unit.new_zeros(2, 2, k, k)  # of negatives and positives, H and H s
    lse, coefficient, base, slope, share = (x[found.order] for x in terms)
    lse = torch.where(lse == -torch.inf, torch.inf, lse)  # where no term is to be
    if objective.positives == "softmax":
        base = torch.where(base == -torch.inf, torch.inf, base)
    edges = torch.searchsorted(found.domains[: rows.own], torch.arange(k + 1, device=lse.device))
    edges_of_candidates = torch.searchsorted(found.domains, torch.arange(k + 1, 2 * k + 2, device=lse.device))
    grad = torch.zeros_like(found.unit) if need_embeddings or need_candidates else None
    for s, positive, negative, i in _of_chunks(found, tables):
        if objective.negatives == "softmax":
            h = (s - lse[i, None]).exp_().mul_(coefficient[i, None]).add_((s - lse).exp_().mul_(coefficient))
        else:
            h = s.sigmoid() * (coefficient[i, None] + coefficient)
        h.masked_fill_(~negative, 0)
        forth, back = found.of_pairs(tables.weight, i), found.of_pairs(tables.weight.T, i)
        forth.mul_(share[i, None])
        back.mul_(share)
        if objective.positives == "softmax":
            p = (s - base[i, None]).exp_().mul_(slope[i, None]).add_((s - base).exp_().mul_(slope))
            p.sub_(forth).sub_(back)
        else:
            p = forth.mul_((base[i, None] - s).sigmoid_()).add_(back.mul_((base - s).sigmoid_())).neg_()
        p.masked_fill_(~positive, 0)
        del forth, back
        inside = (edges.clamp(i.start, i.stop) - i.start).diff()
        for part, of_h in zip(sums, (h, p), strict=True):
            for q in range(2):
                values = of_h * s if q else of_h
                own = _by_domains(values[:, : rows.own], inside, edges.diff())
                own.diagonal().mul_(0.5)  # every pair was met from both sides
                part[q] += own.triu_()
                if len(found.unit) > rows.own:
                    mixed = _by_domains(values[:, rows.own :], inside, edges_of_candidates.diff())
                    part[q] += mixed.triu() + mixed.tril_(-1).mT
        if grad is not None:
            h.add_(p).div_(found.of_pairs(tables.temperature, i))
            if need_embeddings:
                grad[i] = h @ found.unit
            if need_candidates:
                grad[rows.own :] += h[:, rows.own :].mT @ found.unit[i]
    if grad is not None:
        if normalize:
            along = (grad * found.unit).sum(1, keepdim=True).masked_fill_(found.norm <= 1e-12, 0)  # a constant there
            grad.addcmul_(found.unit, along, value=-1).div_(found.norm)
        grad = torch.empty_like(grad).index_copy_(0, found.order, grad)
    return grad, sums.permute(0, 2, 3, 1)


def _sort(rows: Rows, num_domains: int, normalize: bool) -> _Sorted:
    padding = rows.sample_ids < 0
    domains = torch.zeros_like(rows.sample_ids) if rows.domain_ids is None else rows.domain_ids
    is_candidate = torch.arange(len(domains), device=domains.device) >= rows.own
    domains = domains - num_domains * is_candidate  # of candidates they were behind those of own rows
    domains = domains.masked_fill(padding, num_domains) + (num_domains + 1) * is_candidate
    domains, order = domains.sort(stable=True)
    unit = rows.z.to(accumulator_dtype(rows.z.dtype)).masked_fill(padding[:, None], 0)[order]
    norm = torch.ones_like(unit[:, :1])
    if normalize:
        norm = unit.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        unit.div_(norm)
    groups = rows.sample_ids if rows.group_ids is None else rows.group_ids
    return _Sorted(rows.own, unit, norm, rows.sample_ids[order], groups[order], domains, order)


def _of_chunks(rows: _Sorted, tables: Tables) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """s, which pairs are positives and which negatives, (rows, N) each, for some own rows, and which these are."""
    n = len(rows.unit)
    row = torch.arange(n, device=rows.unit.device)
    step = max(_ELEMENTS // max(n, 1), 1)
    for start in range(0, rows.own, step):
        i = slice(start, min(start + step, rows.own))
        s = (
            (rows.unit[i] @ rows.unit.T)
            .sub_(rows.of_pairs(tables.offset, i))
            .div_(rows.of_pairs(tables.temperature, i))
        )
        comparable = (rows.samples[i, None] >= 0) & (rows.samples >= 0)
        if tables.domain_mask is not None:
            comparable &= rows.of_pairs(tables.domain_mask, i)
        positive = (rows.samples[i, None] == rows.samples).logical_and_(comparable).logical_and_(row[i, None] != row)
        negative = (rows.groups[i, None] != rows.groups).logical_and_(comparable)
        yield s, positive, negative, i


def _by_domains(matrix: Tensor, row_counts: Tensor, column_counts: Tensor) -> Tensor:
    """(K, K) sums over domains of rows and of columns, both of which ascend; those behind all domains are left out."""

    def summed(values: Tensor, counts: Tensor) -> Tensor:
        counts = torch.cat([counts, (values.shape[0] - counts.sum())[None]])
        return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True)[:-1]

    return summed(summed(matrix.T.contiguous(), column_counts).T.contiguous(), row_counts)
