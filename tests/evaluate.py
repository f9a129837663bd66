"""Runs a case on a backend and holds the result against the oracle.

    result = evaluate(case, backend="cpu", dtype=torch.bfloat16)
    assert_matches(result, case, torch.bfloat16)

The error budget is the sum of: twice the error of the same formula in plain PyTorch with rows of the same dtype, and two
units in the last place of that dtype, both in units of the oracle's `scale` (the magnitude of the terms of a value); and two
units in the last place of the accumulator for exponents (the oracle's `sensitivity`), and its smallest normal number for powers
(`underflow`). ``run_case`` of tests/emulation makes
a Case from a file and calls ``evaluate``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import uniclip_kernels
from tests import brute_force
from tests.cases import Candidates, Case

FIELDS = tuple(brute_force.Answer._fields)
ROWS = ("grad_embeddings", "grad_candidates")  # which have the dtype of the rows
TABLES = ("grad_temperature", "grad_offset")
PLAIN_FACTOR = 2
ULPS = 2


@dataclass(frozen=True)
class Result:
    """float64 arrays in the shapes of the arguments, or None where there was none, or nothing to differentiate by."""

    loss: np.ndarray
    grad_embeddings: np.ndarray
    grad_temperature: np.ndarray | None = None
    grad_offset: np.ndarray | None = None
    grad_candidates: np.ndarray | None = None
    grad_anchor_weight: np.ndarray | None = None


def evaluate(case: Case, backend: str | None, dtype: torch.dtype, device: str = "cpu") -> Result:
    """Loss and gradients of ``case`` through the public function."""
    return _differentiate(
        case, dtype, device, functools.partial(getattr(uniclip_kernels, case.objective), backend=backend)
    )


def specification(case: Case, dtype: torch.dtype) -> Result:
    """The same straight from ``uniclip_kernels.reference``."""
    return _differentiate(case, dtype, "cpu", getattr(uniclip_kernels.reference, case.objective))


def plain(case: Case, dtype: torch.dtype) -> Result:
    """The same in plain PyTorch: what the dtype of the rows costs anybody."""
    return _differentiate(case, dtype, "cpu", functools.partial(_plain, case.objective))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _differentiate(case: Case, dtype: torch.dtype, device: str, function) -> Result:
    def prepare(value):
        if not isinstance(value, Tensor):
            return value
        value = value.to(device, accumulator(dtype)) if value.is_floating_point() else value.to(device)
        return value.detach().requires_grad_(value.is_floating_point())

    options = {name: prepare(value) for name, value in case.options.items()}
    z = case.rows(dtype, device).detach().requires_grad_()
    ids = [prepare(ids) for ids in (case.sample_ids, case.domain_ids)]
    if case.candidates is not None:
        rows = case.candidates.rows(dtype, device).detach().requires_grad_(case.candidates.requires_grad)
        named = {name: prepare(getattr(case.candidates, name)) for name in ("sample_ids", "domain_ids", "exclude_ids")}
        options |= {"candidates": rows} | {f"candidate_{name}": value for name, value in named.items()}
    loss = function(z, *ids, **options)
    assert loss.dtype == accumulator(dtype)
    leaves = {"embeddings": z} | {n: options.get(n) for n in ("temperature", "offset", "candidates", "anchor_weight")}
    leaves = {n: leaf for n, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.requires_grad}
    upstream = torch.as_tensor(case.upstream, dtype=loss.dtype, device=device)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), upstream), strict=True))
    assert all(grads[name].dtype == leaf.dtype and grads[name].shape == leaf.shape for name, leaf in leaves.items())
    arrays = {f"grad_{name}": grad.double().cpu().numpy() for name, grad in grads.items()}
    return Result(loss.detach().double().cpu().numpy(), **arrays)


def _plain(
    objective: str,
    z: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
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
) -> Tensor:
    m = len(z)
    columns = [(z, sample_ids, domain_ids, exclude_ids)]
    if candidates is not None:
        columns.append((candidates, candidate_sample_ids, candidate_domain_ids, candidate_exclude_ids))

    def ids(which: int, otherwise: int) -> Tensor:
        of_each = [torch.full((len(c[0]),), otherwise) if c[which] is None else c[which].long() for c in columns]
        return torch.cat(of_each).where(~padding, 0)

    g = torch.cat([c[1].long() for c in columns])
    padding = g < 0
    d, e = ids(2, 0), ids(3, -1)
    z = torch.cat([c[0] for c in columns]).masked_fill(padding[:, None], 0)
    unit = (F.normalize(z, dim=1) if normalize else z).to(accumulator(z.dtype))
    upper = torch.minimum(d[:m, None], d), torch.maximum(d[:m, None], d)

    def spread(table, pair):
        return table[pair] if isinstance(table, Tensor) and table.ndim == 2 else table

    s = (unit[:m] @ unit.T - spread(offset, upper)) / spread(temperature, upper)
    w = spread(weight, (d[:m, None], d[None]))
    out = padding[:m, None] | padding | (False if domain_mask is None else ~domain_mask[upper])
    same = g[:m, None] == g
    out = out | (~same & (e[:m, None] == e) & (e >= 0))
    positive, negative = same & ~out & ~torch.eye(m, len(g), dtype=torch.bool), ~same & ~out

    def lse(of):
        return s.masked_fill(~of, -torch.inf).logsumexp(1, keepdim=True)

    def softplus(x):
        return F.softplus(x, threshold=50)

    counts, count = positive.any(1), positive.sum(1).clamp(min=1)
    if objective == "mp_nce":
        loss = torch.where(positive, softplus(lse(negative) - s) * w, 0).sum(1) / count
    elif objective == "sup_con":
        loss = torch.where(positive, (lse(positive | negative) - s) * w, 0).sum(1) / count
    elif objective == "mil_nce":
        x = lse(negative) - lse(positive)
        loss = softplus(x.where(counts[:, None], 0)).squeeze(1)
    else:
        loss = torch.where(positive, softplus(-s) * w, 0).sum(1) + torch.where(negative, softplus(s), 0).sum(1)
        counts = counts | negative.any(1)
    alpha = torch.where(counts, torch.ones_like(loss) if anchor_weight is None else anchor_weight, 0)
    loss = alpha * loss
    if reduction == "mean":
        return loss.sum() / alpha.sum() if alpha.sum() > 0 else 0 * loss.sum()
    return loss.sum() if reduction == "sum" else loss


@functools.cache
def oracle(case: Case, dtype: torch.dtype) -> brute_force.Answer:
    """The float64 answer for the values that the rows have in ``dtype``."""
    k = case.num_domains

    def table(name: str, default: float) -> np.ndarray:
        return torch.as_tensor(case.options.get(name, default), dtype=torch.float64).expand(k, k).numpy()

    def rows(of: Case | Candidates, exclude_ids: Tensor | None) -> brute_force.Rows:
        padding = of.sample_ids < 0
        z = of.rows(dtype).double().masked_fill(padding[:, None], 0)
        domain_ids = torch.zeros(len(z)) if of.domain_ids is None or _scalars_only(case) else of.domain_ids
        excluded = torch.full((len(z),), -1) if exclude_ids is None else exclude_ids
        ids = of.sample_ids, domain_ids.int().masked_fill(padding, 0), excluded
        return brute_force.Rows(z.numpy(), *(i.tolist() for i in ids))

    own = rows(case, case.options.get("exclude_ids"))
    others = case.candidates or Candidates(case.embeddings[:0], case.sample_ids[:0])
    mask, alpha = case.options.get("domain_mask"), case.options.get("anchor_weight")
    return brute_force.differentiate(
        case.objective,
        own,
        rows(others, others.exclude_ids),
        table("temperature", 0.07),
        table("offset", 0.0),
        table("weight", 1.0),
        np.ones((k, k), bool) if mask is None else mask.numpy(),
        np.ones(len(own.values)) if alpha is None else alpha.double().numpy(),
        case.options.get("reduction", "mean"),
        case.options.get("normalize", True),
        torch.as_tensor(case.upstream, dtype=torch.float64).numpy(),
    )


def _scalars_only(case: Case) -> bool:
    return not any(isinstance(value, Tensor) and value.ndim == 2 for value in case.options.values())


def assert_matches(result: Result, case: Case, dtype: torch.dtype) -> None:
    """Raise an AssertionError that shows the worst element if one is outside its budget."""
    with torch.no_grad():
        answer = oracle(case, dtype)
    rival, worst = plain(case, dtype), dict.fromkeys(FIELDS, 0.0)
    for name in FIELDS:
        got, plain_value = getattr(result, name), getattr(rival, name)
        assert (got is None) == (plain_value is None), f"{case.name}: {name} should be there, or should not"
        if got is not None:
            worst[name] = rounding(plain_value, getattr(answer, name), _dtype_of(name, dtype))
    # Two sums over the same pairs of rows, in few numbers: on one of them plain PyTorch may be right by chance.
    for name in TABLES:
        worst[name] = max(worst[name] for name in TABLES)
    for name in FIELDS:
        got, out = getattr(result, name), _dtype_of(name, dtype)
        if got is not None:
            plain_value = getattr(rival, name)
            assert_close(f"{case.name}: {name}", got, getattr(answer, name), plain_value, worst[name], dtype, out)


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    return dtype if name in ROWS else accumulator(dtype)


def _parts(expected: brute_force.Value, got: np.ndarray) -> tuple[np.ndarray, ...]:
    parts = tuple(np.broadcast_to(x, expected.value.shape) for x in expected)
    if got.ndim == 0 and expected.value.ndim == 2:  # a scalar temperature or offset stands for the whole table
        return tuple(x.sum() for x in parts)
    return parts


def rounding(rival: np.ndarray, expected: brute_force.Value, out: torch.dtype) -> float:
    """The largest error of plain PyTorch, in units of the scale."""
    value, scale, *_ = _parts(expected, rival)
    limits = torch.finfo(out)
    value, rival = (np.clip(x, limits.min, limits.max) for x in (value, rival))
    error = np.maximum(np.abs(rival - value) - limits.smallest_normal * limits.eps, 0)
    relative = np.divide(error, scale, out=np.zeros_like(value), where=np.isfinite(error) & (scale > 0))
    return relative.max(initial=0)


def assert_close(
    name: str,
    got: np.ndarray,
    expected: brute_force.Value,
    rival: np.ndarray,
    worst: float,
    dtype: torch.dtype,
    out: torch.dtype,
) -> None:
    """``rival`` is plain PyTorch's value, off by ``worst``; ``dtype`` that of the rows, ``out`` that of the values."""
    value, scale, sensitivity, underflow = _parts(expected, got)
    assert got.shape == value.shape, f"{name}: shape {got.shape}, expected {value.shape}"
    limits = torch.finfo(out)
    step = limits.smallest_normal * limits.eps  # of the subnormal numbers
    value, got = (np.clip(x, limits.min, limits.max) for x in (value, got))
    allowed = (PLAIN_FACTOR * worst + ULPS * torch.finfo(dtype).eps) * scale
    sums = torch.finfo(accumulator(dtype))
    allowed = allowed + ULPS * sums.eps * sensitivity + sums.smallest_normal * underflow + step
    error = np.abs(got - value)
    if (error <= allowed).all():  # False for NaN
        return
    excess = np.where(np.isnan(error), np.inf, error / allowed)
    place = np.unravel_index(excess.argmax(), excess.shape)
    raise AssertionError(
        f"{name}{list(map(int, place))} is {got[place]!r}, expected {value[place]!r} in {out}: error {error[place]:.3g}, "
        f"{excess[place]:.3g} times the allowed {allowed[place]:.3g} (plain PyTorch has {rival[place]!r}); "
        f"{int((excess > 1).sum())} of {excess.size} elements are outside"
    )
