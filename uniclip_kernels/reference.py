"""The losses and the similarity in plain PyTorch: the executable specification of the kernels.

It makes every matrix over pairs of rows in full, on any device, in any dtype (16-bit inputs are computed in float32), and
leaves the derivatives to autograd. P_i: the rows of anchor i's sample but itself; N_i: those of other samples, but for
those that share its exclusion id; ν_i, π_i, λ_i: the logsumexp of s_ij over N_i, over P_i, over both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._tables import full_table, num_domains_of, symmetric_table

__all__ = ["domain_similarity", "mil_nce", "mp_nce", "siglip", "sup_con"]


def domain_similarity(
    x: Tensor,
    y: Tensor | None = None,
    x_domain_ids: Tensor | None = None,
    y_domain_ids: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    offset: float | Tensor = 0.0,
    normalize: bool = True,
) -> Tensor:
    """s_ij = (cos(x_i, y_j) - b[d_i, d_j]) / τ[d_i, d_j], the domain-dependent similarity (section 3.3 of UniCLIP).

    The arguments are those of :func:`uniclip_kernels.domain_similarity`. Returns (Mx, My), float32 or float64.
    """
    x = _rows(x, normalize)
    y, y_domain_ids = (x, x_domain_ids) if y is None else (_rows(y, normalize), y_domain_ids)
    k, ignore = num_domains_of(temperature, offset)
    pair = _domains(x_domain_ids, x, ignore)[:, None], _domains(y_domain_ids, y, ignore)[None, :]
    tau = symmetric_table(temperature, k, x)[pair]
    b = symmetric_table(offset, k, x)[pair]
    # Float32 is part of the specification. The meta device knows no autocast.
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        return (x @ y.T - b) / tau


def mp_nce(*rows: Tensor | None, **options) -> Tensor:
    """Each positive against the negatives alone (UniCLIP, equation 5): ℓ_i = 1/|P_i| Σ_p w softplus(ν_i - s_ip).

    The arguments of these four are those of :func:`uniclip_kernels.mp_nce`. Returns a scalar, or (M,) for reduction "none".
    """
    s, positive, negative, w, *how = _compare(*rows, **options)
    nu = _logsumexp(s, negative)
    loss = -F.logsigmoid(s - nu) * w  # softplus(ν_i - s_ip), exact in the tails
    return _reduce(_mean(loss, positive), positive, *how)


def sup_con(*rows: Tensor | None, **options) -> Tensor:
    """Each positive against all others (Khosla et al. 2020, L_out): ℓ_i = 1/|P_i| Σ_p w (λ_i - s_ip)."""
    s, positive, negative, w, *how = _compare(*rows, **options)
    lam = _logsumexp(s, positive | negative)
    return _reduce(_mean((lam - s) * w, positive), positive, *how)


def mil_nce(*rows: Tensor | None, **options) -> Tensor:
    """All positives as one (Miech et al. 2020): ℓ_i = softplus(ν_i - π_i); without the argument ``weight``."""
    s, positive, negative, _, *how = _compare(*rows, weight=1.0, **options)
    margin = _logsumexp(s, positive) - _logsumexp(s, negative)  # π_i - ν_i
    return _reduce(-F.logsigmoid(margin.squeeze(1).where(positive.any(1), 0)), positive, *how)


def siglip(*rows: Tensor | None, **options) -> Tensor:
    """Each pair by itself (Zhai et al. 2023): ℓ_i = Σ_p w softplus(-s_ip) + Σ_n softplus(s_in)."""
    s, positive, negative, w, *how = _compare(*rows, **options)
    loss = _sum(-F.logsigmoid(s) * w, positive) + _sum(-F.logsigmoid(-s), negative)
    return _reduce(loss, positive | negative, *how)


def _compare(
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    offset: float | Tensor = 0.0,
    weight: float | Tensor = 1.0,
    domain_mask: Tensor | None = None,
    exclude_ids: Tensor | None = None,
    anchor_weight: Tensor | None = None,
    candidates: Tensor | None = None,
    candidate_sample_ids: Tensor | None = None,
    candidate_domain_ids: Tensor | None = None,
    candidate_exclude_ids: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, str]:
    """s_ij, whether j is in P_i, whether in N_i, and w[d_i, d_j], all (M, M + Q); and how to reduce, as given."""
    k, ignore = num_domains_of(temperature, offset, weight, domain_mask)

    def prepare(z: Tensor, samples: Tensor, domains: Tensor | None, excluded: Tensor | None) -> list[Tensor]:
        present = samples >= 0  # padding rows, whatever they hold, become ones, as zeros have no second derivative
        z, domains = z.masked_fill(~present[:, None], 1), _domains(domains, z, ignore).where(present, 0)
        excluded = torch.full_like(domains, -1) if excluded is None else excluded.long()
        return [_rows(z, normalize), samples.long(), domains, excluded]

    rows = others = prepare(embeddings, sample_ids, domain_ids, exclude_ids)
    if candidates is not None:
        more = prepare(candidates, candidate_sample_ids, candidate_domain_ids, candidate_exclude_ids)
        others = [torch.cat(both) for both in zip(rows, more, strict=True)]
    (x, g, d, e), (y, *other_ids) = rows, others
    s = domain_similarity(x, y, d, other_ids[1], temperature=temperature, offset=offset, normalize=False)
    (g_i, d_i, e_i), (g_j, d_j, e_j) = (ids[:, None] for ids in (g, d, e)), (ids[None, :] for ids in other_ids)
    comparable = (g_i >= 0) & (g_j >= 0)
    if domain_mask is not None:
        comparable &= domain_mask.to(s.device)[d_i, d_j]
    same = g_i == g_j
    positive = comparable & same & ~torch.eye(*s.shape, dtype=torch.bool, device=s.device)
    negative = comparable & ~same & ~((e_i == e_j) & (e_i >= 0))
    return s, positive, negative, full_table(weight, k, s)[d_i, d_j], anchor_weight, reduction


def _reduce(loss: Tensor, counted: Tensor, anchor_weight: Tensor | None, reduction: str) -> Tensor:
    """Over the anchors that have anything ``counted``, each times its weight α_i."""
    out = ~counted.any(1)
    alpha = (torch.ones_like(loss) if anchor_weight is None else anchor_weight.to(loss)).masked_fill(out, 0)
    loss, total = alpha * loss.masked_fill(out, 0), alpha.sum()
    if reduction == "none":
        return loss
    return loss.sum() / total.where(total > 0, torch.inf) if reduction == "mean" else loss.sum()


def _logsumexp(s: Tensor, of: Tensor) -> Tensor:
    some = of.any(1, keepdim=True)  # of none it is -inf, whose derivatives are 0: those of logsumexp would be NaN
    return s.masked_fill(~of & some, -torch.inf).logsumexp(1, keepdim=True).where(some, -torch.inf)


def _sum(loss: Tensor, of: Tensor) -> Tensor:
    return loss.masked_fill(~of, 0).sum(1)


def _mean(loss: Tensor, of: Tensor) -> Tensor:
    return _sum(loss, of) / of.sum(1).clamp(min=1)


def _rows(z: Tensor, normalize: bool) -> Tensor:
    z = z if z.dtype == torch.float64 else z.float()
    return F.normalize(z, dim=1) if normalize else z


def _domains(ids: Tensor | None, rows: Tensor, ignore: bool) -> Tensor:
    """(rows,) domain ids; ``pair`` made of two of them expands a (K, K) table to all pairs of rows."""
    return torch.zeros(rows.shape[0], dtype=torch.long, device=rows.device) if ids is None or ignore else ids.long()
