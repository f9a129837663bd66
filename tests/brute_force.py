"""The oracle: loops over the definitions of the losses, and their gradients pair by pair, in float64.

It shares nothing with the package. Of anchor i, with P and N its positives and negatives among all other rows and candidates,
w = w[d_i,d_p], and ν, π, λ the log-sum-exps of s_ij over N, over P, and over both:

              ℓ_i                           ∂ℓ_i/∂s_in      ∂ℓ_i/∂s_ip
    mp_nce    Σ_p w/|P| softplus(ν - s_ip)  c e^{s_in - ν}  -w/|P| σ(ν - s_ip)      c = Σ_p w/|P| σ(ν - s_ip)
    sup_con   Σ_p w/|P| (λ - s_ip)          c e^{s_in - λ}  c e^{s_ip - λ} - w/|P|  c = Σ_p w/|P|
    mil_nce   softplus(ν - π)               c e^{s_in - ν}  -c e^{s_ip - π}         c = σ(ν - π)
    siglip    Σ_p w softplus(-s_ip)         σ(s_in)         -w σ(-s_ip)
              + Σ_n softplus(s_in)

With q_i what the reduction makes of anchor i (α_i / Σ α for "mean") times the gradient from above, 0 for what is no anchor:

    H_ij = q_i ∂ℓ_i/∂s_ij + q_j ∂ℓ_j/∂s_ji       a function of the unordered pair; j = i is in no set
    ∂L/∂ẑ_i = Σ_j H_ij ẑ_j / τ        ∂L/∂b[D] = -Σ_{i<j in D} H_ij / τ        ∂L/∂τ[D] = -Σ_{i<j in D} H_ij s_ij / τ
    ∂L/∂α_i = (ℓ_i - L) / Σ α for "mean", else ℓ_i, times the gradient from above

Beside each value stand three measures of the error that rounding must be expected to cause, also where terms cancel:
`scale`, the sum of the magnitudes of the terms that the value is made of; `sensitivity`, the same with each term times the
magnitude of its exponents s, ν, π and λ, for a relative error of s makes one of e^s that is larger by so much; and `underflow`,
the same with every power of e, or function of it, replaced by 1: times the smallest normal number, what is lost below that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Value(NamedTuple):
    value: np.ndarray
    scale: np.ndarray  # of the same shape, or broadcasting to it
    sensitivity: np.ndarray  # likewise
    underflow: np.ndarray  # likewise


class Answer(NamedTuple):
    loss: Value
    grad_embeddings: Value  # (M, D)
    grad_temperature: Value  # (K, K), upper triangle, as in the next
    grad_offset: Value
    grad_candidates: Value  # (Q, D)
    grad_anchor_weight: Value  # (M,)


class Rows(NamedTuple):
    values: np.ndarray  # (rows, D)
    sample_ids: list[int]
    domain_ids: list[int]
    exclude_ids: list[int]


class Anchor(NamedTuple):
    """What an objective makes of one row, if it ``counts``: ℓ, and ∂ℓ/∂s_j by j."""

    loss: Value
    powers: dict[int, float]  # terms made of powers of e,
    constants: dict[int, float]  # and others
    underflow: dict[int, float]
    logsumexps: tuple[float, ...]
    counts: bool


def _mp_nce(s: list[float], w: list[float], positives: list[int], negatives: list[int]) -> Anchor:
    nu = _logsumexp([s[n] for n in negatives])
    share = {p: w[p] / len(positives) for p in positives}
    pull = {p: share[p] * _sigmoid(nu - s[p]) for p in positives}
    c, most = sum(pull.values()), sum(map(abs, share.values()))
    loss = [(share[p] * _softplus(nu - s[p]), abs(pull[p]) * _magnitude(s[p], nu), abs(share[p])) for p in positives]
    powers = {n: c * math.exp(s[n] - nu) for n in negatives} | {p: -pull[p] for p in positives}
    return Anchor(_sum_of(loss), powers, {}, dict.fromkeys(powers, most), (nu,), bool(positives))


def _sup_con(s: list[float], w: list[float], positives: list[int], negatives: list[int]) -> Anchor:
    others = positives + negatives
    lam = _logsumexp([s[j] for j in others])
    share = {p: w[p] / len(positives) for p in positives}
    c, most = sum(share.values()), sum(map(abs, share.values()))
    # 1: what an error of the sum that λ is the logarithm of adds to it.
    loss = [(share[p] * (lam - s[p]), abs(share[p]) * (1 + _magnitude(s[p], lam)), abs(share[p])) for p in positives]
    powers = {j: c * math.exp(s[j] - lam) for j in others}
    constants = {p: -share[p] for p in positives}
    return Anchor(_sum_of(loss), powers, constants, dict.fromkeys(powers, most), (lam,), bool(positives))


def _mil_nce(s: list[float], w: list[float], positives: list[int], negatives: list[int]) -> Anchor:
    nu, pi = _logsumexp([s[n] for n in negatives]), _logsumexp([s[p] for p in positives])
    x = nu - pi if positives else -math.inf
    c = _sigmoid(x)
    powers = {n: c * math.exp(s[n] - nu) for n in negatives} | {p: -c * math.exp(s[p] - pi) for p in positives}
    loss = [(_softplus(x), c * _magnitude(nu, pi), 1.0)]
    return Anchor(_sum_of(loss), powers, {}, dict.fromkeys(powers, 1.0), (nu, pi), bool(positives))


def _siglip(s: list[float], w: list[float], positives: list[int], negatives: list[int]) -> Anchor:
    pairs = [(p, -s[p], w[p]) for p in positives] + [(n, s[n], 1.0) for n in negatives]
    loss = [(v * _softplus(x), abs(v) * _sigmoid(x) * _magnitude(x), abs(v)) for _, x, v in pairs]
    powers = {p: -w[p] * _sigmoid(-s[p]) for p in positives} | {n: _sigmoid(s[n]) for n in negatives}
    return Anchor(_sum_of(loss), powers, {}, {j: abs(v) for j, _, v in pairs}, (), bool(pairs))


OBJECTIVES: dict[str, Callable[..., Anchor]] = {
    "mp_nce": _mp_nce,
    "sup_con": _sup_con,
    "mil_nce": _mil_nce,
    "siglip": _siglip,
}


def differentiate(
    objective: str,
    rows: Rows,
    candidates: Rows,
    temperature: np.ndarray,
    offset: np.ndarray,
    weight: np.ndarray,
    domain_mask: np.ndarray,
    anchor_weight: np.ndarray,
    reduction: str = "mean",
    normalize: bool = True,
    upstream: np.ndarray | float = 1.0,
) -> Answer:
    """Loss and gradients of M rows and Q candidates; tables are (K, K); ``upstream`` is (M,) for reduction "none"."""
    m = len(rows.values)
    z = np.concatenate([rows.values, candidates.values])
    g, d, e = (a + b for a, b in zip(rows[1:], candidates[1:], strict=True))
    unit, norm = _unit_rows(z, normalize)
    pair = np.minimum.outer(d, d).astype(int), np.maximum.outer(d, d).astype(int)
    similarities = (unit @ unit.T - offset[pair]) / temperature[pair]

    loss, counts = np.zeros((4, m)), np.zeros(m, bool)
    powers, constants, most = np.zeros((3, len(z), len(z)))  # ∂ℓ_i/∂s_ij and its underflow
    exponent = np.zeros(len(z))
    for i in range(m):
        w, seen = (table[d[i]][d].tolist() for table in (weight, domain_mask))
        compared = [j for j in range(len(z)) if j != i and g[i] >= 0 and g[j] >= 0 and seen[j]]
        positives = [j for j in compared if g[j] == g[i]]
        negatives = [j for j in compared if g[j] != g[i] and not e[i] == e[j] >= 0]
        anchor = OBJECTIVES[objective](similarities[i].tolist(), w, positives, negatives)
        loss[:, i], exponent[i], counts[i] = anchor.loss, _magnitude(*anchor.logsumexps), anchor.counts
        for matrix, terms in (powers, anchor.powers), (constants, anchor.constants), (most, anchor.underflow):
            matrix[i, list(terms)] = list(terms.values())

    alpha = np.where(counts, anchor_weight, 0)
    total = (alpha.sum() or np.inf) if reduction == "mean" else 1.0
    losses = Value(*loss * alpha)
    if reduction != "none":
        losses = Value(*(v.sum() / total for v in losses))

    value, *measures = loss
    if reduction == "mean":
        value, measures = value - losses.value, [v + of_loss for v, of_loss in zip(measures, losses[1:], strict=True)]
    factor = np.where(counts, upstream, 0) / total
    by_weight = Value(value * factor, *(v * np.abs(factor) for v in measures))

    q = np.zeros((len(z), 1))
    q[:m, 0] = alpha * upstream / total
    powers, constants, most = ((x + x.T) / temperature[pair] for x in (q * powers, q * constants, np.abs(q) * most))
    h, size = powers + constants, np.abs(powers) + np.abs(constants)
    sensitivity = np.abs(powers) * (np.abs(similarities) + np.add.outer(exponent, exponent))

    length = np.linalg.norm(unit, axis=1, keepdims=True)
    by_row = _through_norm(h @ unit, unit, norm, normalize), *(x @ length / norm for x in (size, sensitivity, most))

    def table(factor: np.ndarray | float, sensitivity: np.ndarray) -> Value:
        terms = -h * factor, size * np.abs(factor), sensitivity, most * np.abs(factor)
        return Value(*(_sum_by_pair(np.triu(x, 1), pair, len(temperature)) for x in terms))  # unordered pairs once

    # H s shows the errors of s in its factor too, where s may be the rest of what cancels: cos - b.
    made_of = (np.abs(unit) @ np.abs(unit).T + np.abs(offset[pair])) / temperature[pair]
    return Answer(
        loss=losses,
        grad_embeddings=Value(*(x[:m] for x in by_row)),
        grad_temperature=table(similarities, sensitivity * np.abs(similarities) + size * made_of),
        grad_offset=table(1.0, sensitivity),
        grad_candidates=Value(*(x[m:] for x in by_row)),
        grad_anchor_weight=by_weight,
    )


class Similarity(NamedTuple):
    s: Value  # (Mx, My)
    grad_x: Value
    grad_y: Value
    grad_temperature: Value
    grad_offset: Value


def domain_similarity(
    x: np.ndarray,
    y: np.ndarray,
    x_domain_ids: list[int],
    y_domain_ids: list[int],
    temperature: np.ndarray,
    offset: np.ndarray,
    upstream: np.ndarray,
    normalize: bool = True,
) -> Similarity:
    """s_ij = (cos - b) / τ of (Mx, D) and (My, D) rows, and the gradients of Σ upstream s.

    In long double where there is one: in float64, the error of this very formula would count as none.
    """
    x, y, temperature, offset, upstream = (a.astype(np.longdouble) for a in (x, y, temperature, offset, upstream))
    (x_unit, x_norm), (y_unit, y_norm) = (_unit_rows(z, normalize) for z in (x, y))
    pair = (
        np.minimum.outer(x_domain_ids, y_domain_ids).astype(int),
        np.maximum.outer(x_domain_ids, y_domain_ids).astype(int),
    )
    s = (x_unit @ y_unit.T - offset[pair]) / temperature[pair]
    g_tau = upstream / temperature[pair]

    def exactly(value: np.ndarray, scale: np.ndarray) -> Value:
        value, scale = value.astype(np.float64), scale.astype(np.float64)
        return Value(value, scale, np.zeros_like(scale), np.zeros_like(scale))

    def rows(g_tau: np.ndarray, other: np.ndarray, unit: np.ndarray, norm: np.ndarray) -> Value:
        scale = np.abs(g_tau) @ np.linalg.norm(other, axis=1, keepdims=True) / norm
        return exactly(_through_norm(g_tau @ other, unit, norm, normalize), scale)

    def table(terms: np.ndarray) -> Value:
        return exactly(*(_sum_by_pair(t, pair, len(temperature)) for t in (terms, np.abs(terms))))

    return Similarity(
        exactly(s, (np.abs(x_unit) @ np.abs(y_unit).T + np.abs(offset[pair])) / temperature[pair]),
        rows(g_tau, y_unit, x_unit, x_norm),
        rows(g_tau.T, x_unit, y_unit, y_norm),
        table(-g_tau * s),
        table(-g_tau),
    )


def _unit_rows(z: np.ndarray, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    norm = np.maximum(np.sqrt((z * z).sum(1, keepdims=True)), 1e-12) if normalize else np.ones((len(z), 1))
    return z / norm, norm


def _through_norm(grad: np.ndarray, unit: np.ndarray, norm: np.ndarray, normalize: bool) -> np.ndarray:
    """∂/∂z from ∂/∂ẑ: ẑ = z / ‖z‖ moves only across z; at the smallest norm it is a division by a constant."""
    if normalize:
        along = (unit * grad).sum(1, keepdims=True) * (norm > 1e-12)
        grad = (grad - unit * along) / norm
    return grad


def _sum_by_pair(terms: np.ndarray, pair: tuple[np.ndarray, np.ndarray], k: int) -> np.ndarray:
    """(K, K) sums of the terms of each pair of domains, exact to float64."""
    members: dict = {}
    for e, f, term in zip(*(x.ravel().tolist() for x in (*pair, terms)), strict=True):
        members.setdefault((e, f), []).append(term)
    sums = np.zeros((k, k))
    for domains, addends in members.items():
        sums[domains] = math.fsum(addends)
    return sums


def _sum_of(terms: list[tuple[float, float, float]]) -> Value:
    """Of terms of one sign or the other, with the sensitivity and the underflow of each."""
    return Value(
        sum(t[0] for t in terms), sum(abs(t[0]) for t in terms), sum(t[1] for t in terms), sum(t[2] for t in terms)
    )


def _magnitude(*exponents: float) -> float:
    return sum(abs(v) for v in exponents if math.isfinite(v))


def _logsumexp(values: list[float]) -> float:
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))
