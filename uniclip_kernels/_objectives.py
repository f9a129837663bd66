"""The four objectives as formulas over a few numbers of each row: over its negatives (ν), its positives (π), or both (λ).

mp_nce   1/|P| Σ_p w softplus(ν - s_p)      each positive against the negatives alone (UniCLIP, Lee et al. 2022)
sup_con  1/|P| Σ_p w (λ - s_p)              against all others (Khosla et al. 2020, L_out)
mil_nce  softplus(ν - π)                    one sum over positives (Miech et al. 2020)
siglip   Σ_p w softplus(-s_p) + Σ_n softplus(s_n)    every pair for itself (Zhai et al. 2023)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._problem import Negatives, Objective, Positives, Statistics, Terms

OBJECTIVES = {
    o.name: o
    for o in (
        Objective("mp_nce", negatives="softmax", positives="sigmoid"),
        Objective("sup_con", negatives="softmax", positives="softmax"),
        Objective("mil_nce", negatives="softmax", positives="softmax"),
        Objective("siglip", negatives="sigmoid", positives="sigmoid"),
    )
}


def of_rows(objective: Objective, negatives: Negatives, positives: Positives) -> tuple[Tensor, Statistics]:
    """The loss of each slot, and what its gradient will need. Slots that are no anchors have count 0."""
    lse, top = negatives
    loss, slope, s, count = positives
    some = count > 0
    if objective.name == "mp_nce":
        base, loss = lse, loss / count.clamp(min=1)
    elif objective.name == "sup_con":
        base = lse = torch.logaddexp(lse, loss)
        loss = (slope * torch.where(some, lse, 0) - s) / count.clamp(min=1)
    elif objective.name == "mil_nce":
        base, margin, count = loss, torch.where(some, lse - loss, -torch.inf), some.int()
        loss, slope = -F.logsigmoid(-margin), margin.sigmoid()
    else:
        base, loss, slope = torch.zeros_like(loss), loss + lse, torch.ones_like(loss)
        some |= top > -torch.inf
        count = some.int()
    # Without positives e^{s - base} is to be 0, whatever s is.
    return loss, Statistics(lse, torch.where(some, base, -torch.inf), slope, count)


def terms(objective: Objective, statistics: Statistics, upstream: Tensor) -> Terms:
    """What weighs the terms of H of each slot, where ``upstream`` (R,) is the gradient of its loss."""
    lse, base, slope, count = statistics
    share = torch.where(count > 0, upstream / count, 0)
    coefficient = slope * share
    if objective.name == "mil_nce":
        return Terms(lse, coefficient, base, -coefficient, torch.zeros_like(share))
    return Terms(lse, coefficient, base, coefficient, share)


def largest(objective: Objective, terms: Terms, weight: Tensor) -> Tensor:
    """A bound of |H|."""
    share = terms.share.abs().amax()
    if objective.name == "mp_nce":  # with weights of one sign no term of a positive exceeds the sum of them all
        share = torch.where((weight < 0).any(), share, 0)
    return 2 * (terms.coefficient.abs().amax() + weight.abs().amax() * share)
