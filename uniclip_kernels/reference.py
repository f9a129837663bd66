"""The loss and the similarity in plain PyTorch: the executable specification of the kernels.

Read it beside the paper (UniCLIP, Lee et al., NeurIPS 2022, arXiv 2209.13430). It makes every M x M matrix in full, on
any device, in any dtype (16-bit inputs are computed in float32), and leaves the derivatives to autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._tables import full_table, num_domains_of, symmetric_table

__all__ = ["domain_similarity", "mp_nce"]


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
    """s_ij = (cos(x_i, y_j) - b[d_i, d_j]) / τ[d_i, d_j], the domain-dependent similarity (section 3.3 of the paper).

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


def mp_nce(
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    offset: float | Tensor = 0.0,
    weight: float | Tensor = 1.0,
    domain_mask: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    """MP-NCE: each positive p of anchor i against the negatives alone (equation 5 of the paper, any number of views).

    ℓ_ip = -log(e^{s_ip} / (e^{s_ip} + Σ_n e^{s_in})), weighted by w[d_i, d_p] and averaged over the positives of i.
    The arguments are those of :func:`uniclip_kernels.mp_nce`. Returns a scalar, or (M,) for reduction "none".
    """
    m, device = embeddings.shape[0], embeddings.device
    present = sample_ids >= 0
    embeddings = embeddings.masked_fill(~present[:, None], 0)  # whatever padding rows hold
    k, ignore = num_domains_of(temperature, offset, weight, domain_mask)
    if domain_ids is not None:
        domain_ids = domain_ids.where(present, 0)
    domains = _domains(domain_ids, embeddings, ignore)
    pair = domains[:, None], domains[None, :]
    s = domain_similarity(embeddings, None, domain_ids, temperature=temperature, offset=offset, normalize=normalize)

    comparable = present[:, None] & present[None, :]
    if domain_mask is not None:
        comparable &= domain_mask.to(device)[pair]
    same = sample_ids[:, None] == sample_ids[None, :]
    positive = comparable & same & ~torch.eye(m, dtype=torch.bool, device=device)
    negative = comparable & ~same

    nu = s.masked_fill(~negative, -torch.inf).logsumexp(1, keepdim=True)
    loss = -F.logsigmoid(s - nu) * full_table(weight, k, s)[pair]  # softplus(ν_i - s_ip), exact in the tails
    count = positive.sum(1)
    per_anchor = loss.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    if reduction == "none":
        return per_anchor
    return per_anchor.sum() / (count > 0).sum().clamp(min=1) if reduction == "mean" else per_anchor.sum()


def _rows(z: Tensor, normalize: bool) -> Tensor:
    z = z if z.dtype == torch.float64 else z.float()
    return F.normalize(z, dim=1) if normalize else z


def _domains(ids: Tensor | None, rows: Tensor, ignore: bool) -> Tensor:
    """(rows,) domain ids; ``pair`` made of two of them expands a (K, K) table to all pairs of rows."""
    return torch.zeros(rows.shape[0], dtype=torch.long, device=rows.device) if ids is None or ignore else ids.long()
