"""MP-NCE of many rows by its definition in float64, where the loops of ``brute_force`` would take days.

N samples in two views, which are the two domains; rows of length 1. With E = e^s, of which some rows are made at a time, and
α_i = c_i e^{-ν_i}, a negative has H_ij = E_ij (α_i + α_j), and every sum over j is a product of E with some columns: ν is in E 1,
the gradient in E ẑ and E (α ẑ). What belongs to row i's own sample is taken out of E, and added at the end.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.brute_force import Value

PANEL = 1 << 19  # elements of E at a time


def mp_nce_of_two_views(unit: Tensor, temperature: Tensor, offset: Tensor, rows: Tensor) -> dict[str, Value]:
    """Of (2 N, D) rows, view behind view, and symmetric (2, 2) tables. The gradient is that of the ``rows`` with these numbers.

    Values as ``brute_force.Answer`` has them. Of the measures of error, which a budget grows with, scales of table gradients are
    those of the sums over negatives and over positives, and sensitivities know of ν alone: both are smaller than there.
    """
    m, n = len(unit), len(unit) // 2
    views, domain, partner = unit.split(n), torch.arange(m) // n, torch.arange(m).roll(n)

    def products(columns: Tensor, rows: Tensor) -> Tensor:
        """E with ``columns`` (2 N, C), for the rows of either view apart: (2, len(rows), C)."""
        out = unit.new_empty(2, len(rows), columns.shape[1])
        for d, e in itertools.product((0, 1), repeat=2):
            places, tau, b = (domain[rows] == d).nonzero()[:, 0], temperature[d, e], offset[d, e]
            for some in places.split(PANEL // n):
                power = (unit[rows[some]] / tau) @ views[e].T
                power[torch.arange(len(some)), rows[some] % n] = -torch.inf
                out[e, some] = power.exp_() @ columns[e * n : (e + 1) * n] * (-b / tau).exp()
        return out

    sums, e_z = products(F.pad(unit, (1, 0), value=1), torch.arange(m)).split([1, unit.shape[1]], 2)
    nu = sums.sum(0).squeeze(1).log()
    s = ((unit * unit[partner]).sum(1) - offset[0, 1]) / temperature[0, 1]  # of the positives
    c, loss = (nu - s).sigmoid() / m, torch.logaddexp(nu - s, torch.zeros(())).mean()
    alpha = (c * (-nu).exp())[:, None]

    def table(of_rows: Tensor, of_positives: Tensor) -> Value:
        """``of_rows`` (2, 2 N): of row i's part in H_ij, summed over j of either view."""
        negatives = of_rows.view(2, 2, n).sum(2)
        negatives = (negatives + negatives.T - negatives.diag().diag()).triu()  # unordered pairs once
        positives = F.pad(of_positives[:n].sum()[None, None], (1, 0, 0, 1))
        scale = (negatives.abs() + positives.abs()) / temperature
        return _value(-(negatives + positives) / temperature, scale, scale * nu.mean())

    tau, b = (table[domain].T[..., None] for table in (temperature, offset))
    h, h_positive = alpha * sums, -(c + c[partner])
    h_s = (alpha * e_z * unit).sum(2, keepdim=True) / tau - h * b / tau

    e_alpha, e_alpha_z = products(alpha * F.pad(unit, (1, 0), value=1), rows).split([1, unit.shape[1]], 2)
    pull = (h_positive / temperature[0, 1])[rows, None]
    grad = ((alpha * e_z)[:, rows] + e_alpha_z) / tau[:, rows]
    size = ((h[:, rows] + e_alpha) / tau[:, rows]).sum(0) - pull
    return {
        "loss": _value(loss, loss, (c * nu).sum()),
        "grad_embeddings": _value(grad.sum(0) + pull * unit[partner[rows]], size, size * nu[rows, None]),
        "grad_temperature": table(h_s, h_positive * s),
        "grad_offset": table(h, h_positive),
    }


def _value(value: Tensor, scale: Tensor, sensitivity: Tensor) -> Value:
    return Value(*(t.numpy() for t in (value, scale, sensitivity, torch.zeros(()))))
