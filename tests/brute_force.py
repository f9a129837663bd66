"""The oracle: loops over the definitions of MP-NCE, its gradients by the pairwise formula, in float64.

It shares nothing with the package. With a_ip = q_i w[d_i,d_p] σ(ν_i - s_ip) / |P_i|, q_i what the reduction makes of anchor i
(1 / |A| for "mean") times the gradient from above, and c_i = Σ_p a_ip:

    H_ij = c_i e^{s_ij - ν_i} + c_j e^{s_ij - ν_j}     if j is a negative of i
    H_ij = -(a_ij + a_ji)                              if j is a positive of i
    ∂L/∂ẑ_i = Σ_j H_ij ẑ_j / τ        ∂L/∂b[D] = -Σ_{i<j in D} H_ij / τ        ∂L/∂τ[D] = -Σ_{i<j in D} H_ij s_ij / τ

Beside each value stand three measures of the error that rounding must be expected to cause, also where terms cancel:
`scale`, the sum of the magnitudes of the terms that the value is made of; `sensitivity`, the same with each term times the
magnitude of its exponents s and ν, for a relative error of s makes one of e^s that is larger by so much; and `underflow`, the
same with every power of e, or function of it, replaced by 1: times the smallest normal number, what is lost below that.
"""

from __future__ import annotations

import math
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


def mp_nce(
    embeddings: np.ndarray,
    sample_ids: list[int],
    domain_ids: list[int],
    temperature: np.ndarray,
    offset: np.ndarray,
    weight: np.ndarray,
    domain_mask: np.ndarray,
    reduction: str = "mean",
    normalize: bool = True,
    upstream: np.ndarray | float = 1.0,
) -> Answer:
    """Loss and gradients of (M, D) rows; all tables are (K, K), ids are lists; ``upstream`` is (M,) for reduction "none"."""
    m, g, d = len(embeddings), sample_ids, domain_ids
    unit, norm = _unit_rows(embeddings, normalize)
    pair = np.minimum.outer(d, d).astype(int), np.maximum.outer(d, d).astype(int)
    similarities = (unit @ unit.T - offset[pair]) / temperature[pair]
    s = similarities.tolist()

    def compared(i: int, j: int) -> bool:
        return g[i] >= 0 and g[j] >= 0 and bool(domain_mask[d[i], d[j]])

    comparable = [[compared(i, j) for j in range(m)] for i in range(m)]
    positives = [[j for j in range(m) if comparable[i][j] and j != i and g[j] == g[i]] for i in range(m)]
    negatives = [[j for j in range(m) if comparable[i][j] and g[j] != g[i]] for i in range(m)]
    nu = [_logsumexp([s[i][n] for n in negatives[i]]) for i in range(m)]
    anchors = [i for i in range(m) if positives[i]]

    loss, loss_scale, loss_sensitivity, loss_underflow = np.zeros((4, m))
    a = [{} for _ in range(m)]  # a[i][p], without q_i
    for i in anchors:
        for p in positives[i]:
            share = weight[d[i], d[p]] / len(positives[i])
            x = nu[i] - s[i][p]
            a[i][p] = share * _sigmoid(x)
            loss[i] += share * _softplus(x)
            loss_scale[i] += abs(share) * _softplus(x)
            loss_sensitivity[i] += abs(a[i][p]) * _exponent(s[i][p], nu[i])
            loss_underflow[i] += abs(share)
    q = _anchor_weights(reduction, upstream, m, len(anchors))
    losses = Value(loss, loss_scale, loss_sensitivity, loss_underflow)
    if reduction != "none":
        losses = Value(*(v.sum() / (max(len(anchors), 1) if reduction == "mean" else 1) for v in losses))

    c = [q[i] * sum(a[i].values()) for i in range(m)]
    h = np.zeros((m, m))
    for i in range(m):
        for n in negatives[i]:
            h[i, n] = c[i] * math.exp(s[i][n] - nu[i]) + c[n] * math.exp(s[i][n] - nu[n])
        for p in positives[i]:
            h[i, p] = -(q[i] * a[i][p] + q[p] * a[p][i])

    reach = np.abs(q) * loss_underflow
    h_tau, most = h / temperature[pair], np.add.outer(reach, reach) * np.reshape(comparable, (m, m)) / temperature[pair]
    exponent = np.array([[_exponent(s[i][j], nu[i], nu[j]) for j in range(m)] for i in range(m)]).reshape(m, m)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    rows = Value(
        _through_norm(h_tau @ unit, unit, norm, normalize),
        np.abs(h_tau) @ length / norm,
        (np.abs(h_tau) * exponent) @ length / norm,
        most @ length / norm,
    )

    def table(factor: np.ndarray | float) -> Value:
        terms = -h_tau * factor
        addends = terms, np.abs(terms), np.abs(terms) * exponent, most * np.abs(factor)
        return Value(*(_sum_by_pair(np.triu(t, 1), pair, len(temperature)) for t in addends))  # unordered pairs once

    return Answer(losses, rows, table(similarities), table(1.0))


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


def _anchor_weights(reduction: str, upstream: np.ndarray | float, m: int, anchors: int) -> np.ndarray:
    if reduction == "none":
        return np.asarray(upstream)
    return np.full(m, upstream / max(anchors, 1) if reduction == "mean" else upstream)


def _exponent(*values: float) -> float:
    return sum(abs(v) for v in values if math.isfinite(v))


def _logsumexp(values: list[float]) -> float:
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))
