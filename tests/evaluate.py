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
from tests.cases import Case

FIELDS = ("loss", "grad_embeddings", "grad_temperature", "grad_offset")
PLAIN_FACTOR = 2
ULPS = 2


@dataclass(frozen=True)
class Result:
    """float64 arrays: () or (M,), (M, D), and the shape of the argument, or None where that was a Python number."""

    loss: np.ndarray
    grad_embeddings: np.ndarray
    grad_temperature: np.ndarray | None
    grad_offset: np.ndarray | None


def evaluate(case: Case, backend: str | None, dtype: torch.dtype, device: str = "cpu") -> Result:
    """Loss and gradients of ``case`` through ``uniclip_kernels.mp_nce``."""
    return _differentiate(case, dtype, device, functools.partial(uniclip_kernels.mp_nce, backend=backend))


def plain(case: Case, dtype: torch.dtype) -> Result:
    """The same in plain PyTorch: what the dtype of the rows costs anybody."""
    return _differentiate(case, dtype, "cpu", _plain_mp_nce)


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
    ids = [None if ids is None else ids.to(device) for ids in (case.sample_ids, case.domain_ids)]
    loss = function(z, *ids, **options)
    assert loss.dtype == accumulator(dtype)
    leaves = {"embeddings": z} | {
        n: options[n] for n in ("temperature", "offset") if isinstance(options.get(n), Tensor)
    }
    upstream = torch.as_tensor(case.upstream, dtype=loss.dtype, device=device)
    grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), upstream), strict=True))
    assert all(grads[name].dtype == leaf.dtype and grads[name].shape == leaf.shape for name, leaf in leaves.items())
    arrays = {name: grad.double().cpu().numpy() for name, grad in grads.items()}
    return Result(
        loss.detach().double().cpu().numpy(), arrays["embeddings"], arrays.get("temperature"), arrays.get("offset")
    )


def _plain_mp_nce(
    z: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    temperature: float | Tensor = 0.07,
    offset: float | Tensor = 0.0,
    weight: float | Tensor = 1.0,
    domain_mask: Tensor | None = None,
    reduction: str = "mean",
    normalize: bool = True,
) -> Tensor:
    padding = sample_ids < 0
    z = z.masked_fill(padding[:, None], 0)
    unit = (F.normalize(z, dim=1) if normalize else z).to(accumulator(z.dtype))
    d = torch.zeros_like(sample_ids, dtype=torch.long) if domain_ids is None else domain_ids.long()
    upper = torch.minimum(d[:, None], d), torch.maximum(d[:, None], d)

    def spread(table, pair):
        return table[pair] if isinstance(table, Tensor) and table.ndim == 2 else table

    s = (unit @ unit.T - spread(offset, upper)) / spread(temperature, upper)
    out = padding[:, None] | padding | (False if domain_mask is None else ~domain_mask[upper])
    same = sample_ids[:, None] == sample_ids
    positive = same & ~out & ~torch.eye(len(z), dtype=torch.bool)
    nu = s.masked_fill(same | out, -torch.inf).logsumexp(1, keepdim=True)
    loss = torch.where(positive, F.softplus(nu - s, threshold=50) * spread(weight, (d[:, None], d[None])), 0).sum(1)
    count = positive.sum(1)
    loss = loss / count.clamp(min=1)
    if reduction == "mean":
        return loss.sum() / (count > 0).sum().clamp(min=1)
    return loss.sum() if reduction == "sum" else loss


@functools.cache
def oracle(case: Case, dtype: torch.dtype) -> brute_force.Answer:
    """The float64 answer for the values that the rows have in ``dtype``."""
    k = case.num_domains
    z = case.rows(dtype).double().masked_fill((case.sample_ids < 0)[:, None], 0)
    domain_ids = torch.zeros(len(z)) if case.domain_ids is None or _scalars_only(case) else case.domain_ids

    def table(name: str, default: float) -> np.ndarray:
        return torch.as_tensor(case.options.get(name, default), dtype=torch.float64).expand(k, k).numpy()

    mask = case.options.get("domain_mask")
    return brute_force.mp_nce(
        z.numpy(),
        case.sample_ids.tolist(),
        domain_ids.int().tolist(),
        table("temperature", 0.07),
        table("offset", 0.0),
        table("weight", 1.0),
        np.ones((k, k), bool) if mask is None else mask.numpy(),
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
    rival = plain(case, dtype)
    for name in FIELDS:
        got = getattr(result, name)
        if got is not None:
            out = dtype if name == "grad_embeddings" else accumulator(dtype)
            assert_close(f"{case.name}: {name}", got, getattr(answer, name), getattr(rival, name), dtype, out)


def assert_close(
    name: str, got: np.ndarray, expected: brute_force.Value, rival: np.ndarray, dtype: torch.dtype, out: torch.dtype
) -> None:
    """``rival`` is plain PyTorch's value; ``dtype`` that of the rows, ``out`` that of the values."""
    value, scale, sensitivity, underflow = (np.broadcast_to(x, expected.value.shape) for x in expected)
    if got.ndim == 0 and value.ndim == 2:  # a scalar temperature or offset stands for the whole table
        value, scale, sensitivity, underflow = (x.sum() for x in (value, scale, sensitivity, underflow))
    assert got.shape == value.shape, f"{name}: shape {got.shape}, expected {value.shape}"
    limits = torch.finfo(out)
    step = limits.smallest_normal * limits.eps  # of the subnormal numbers
    value, rival, got = (np.clip(x, limits.min, limits.max) for x in (value, rival, got))

    rival_error = np.maximum(np.abs(rival - value) - step, 0)
    relative = np.divide(rival_error, scale, out=np.zeros_like(value), where=np.isfinite(rival_error) & (scale > 0))
    allowed = (PLAIN_FACTOR * relative.max(initial=0) + ULPS * torch.finfo(dtype).eps) * scale
    sums = torch.finfo(accumulator(dtype))
    allowed = allowed + ULPS * sums.eps * sensitivity + sums.smallest_normal * underflow + step
    error = np.abs(got - value)
    if (error <= allowed).all():  # False for NaN
        return
    excess = np.where(np.isnan(error), np.inf, error / allowed)
    worst = np.unravel_index(excess.argmax(), excess.shape)
    raise AssertionError(
        f"{name}{list(map(int, worst))} is {got[worst]!r}, expected {value[worst]!r} in {out}: error {error[worst]:.3g}, "
        f"{excess[worst]:.3g} times the allowed {allowed[worst]:.3g} (plain PyTorch has {rival[worst]!r}); "
        f"{int((excess > 1).sum())} of {excess.size} elements are outside"
    )
