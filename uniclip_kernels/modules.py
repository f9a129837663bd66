"""The loss as a module that owns its learnable temperatures and offsets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import _known
from ._backend import check_backend
from ._checks import check_reduction, check_tables_now
from .functional import mp_nce


class MPNCELoss(nn.Module):
    """MP-NCE with one learnable temperature and offset for each pair of domains.

    Args:
        num_domains: K, the number of domains (2 for image and text).
        temperature: initial τ, a float or a (K, K) tensor; of a tensor only the upper triangle is read.
        offset: initial b, a float or a (K, K) tensor; likewise.
        weight: w[anchor domain, positive domain], a float or a (K, K) tensor. A buffer, not learned.
        domain_mask: (K, K) bool, symmetric; False drops a pair of domains from positives and negatives.
        learnable: True makes ``log_temperature`` and ``offset`` Parameters, False makes them buffers.
        min_temperature: a learnable temperature never goes below this in use. 0.01 is CLIP's logit scale of 100.
        reduction: "mean" over anchors that have a positive, "sum" or "none".
        backend: name of a backend, or None for the best one usable.

    Attributes:
        log_temperature: (K, K) float32, the logarithm of τ before the floor.
        offset: (K, K) float32.
    """

    log_temperature: Tensor
    offset: Tensor

    def __init__(
        self,
        num_domains: int = 2,
        *,
        temperature: float | Tensor = 0.07,
        offset: float | Tensor = 0.0,
        weight: float | Tensor = 1.0,
        domain_mask: Tensor | None = None,
        learnable: bool = True,
        min_temperature: float = 0.01,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if num_domains < 1:
            raise ValueError(f"num_domains must be at least 1, got {num_domains}")
        if not (min_temperature > 0 and math.isfinite(min_temperature)):
            raise ValueError(f"min_temperature must be positive and finite, got {min_temperature}")
        check_reduction(reduction)
        check_backend(backend)
        tables = {"temperature": temperature, "offset": offset, "weight": weight}
        tau, b, w = (_table(name, value, num_domains) for name, value in tables.items())
        mask = None if domain_mask is None else torch.as_tensor(domain_mask).clone()
        if mask is not None and (mask.dtype != torch.bool or mask.shape != tau.shape):
            raise ValueError(
                f"domain_mask must be a bool tensor of shape {tuple(tau.shape)}, got {mask.dtype} of {tuple(mask.shape)}"
            )
        if not tau.is_meta:  # where there are no values yet
            check_tables_now(tau, b, w, mask)
            if learnable and (tau < min_temperature).any():
                raise ValueError(f"temperature must be at least min_temperature={min_temperature}, got {temperature}")
        self.num_domains = num_domains
        self.learnable = learnable
        self.min_temperature = min_temperature
        self.reduction = reduction
        self.backend = backend
        for name, value in (("log_temperature", tau.log()), ("offset", b)):
            if learnable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("weight", w)
        self.register_buffer("domain_mask", mask)

    @property
    def temperature(self) -> Tensor:
        """(K, K) τ as used by the loss: exp(log_temperature), not below ``min_temperature`` when learnable."""
        tau = self.log_temperature.exp()
        return _Floor.apply(tau, self.min_temperature) if self.learnable else tau

    def forward(self, embeddings: Tensor, sample_ids: Tensor, domain_ids: Tensor | None = None) -> Tensor:
        """The loss of (M, D) ``embeddings``; see :func:`uniclip_kernels.mp_nce`."""
        mask = self.domain_mask
        unknown = mask is not None and mask.is_cuda and not _known.is_traced(mask) and _known.kept(mask) is None
        if unknown and not torch.cuda.is_current_stream_capturing():
            _known.keep(mask, tuple(mask.flatten().tolist()))  # waits for the device, once for each mask
        return mp_nce(
            embeddings,
            sample_ids,
            domain_ids,
            temperature=self.temperature,
            offset=self.offset,
            weight=self.weight,
            domain_mask=self.domain_mask,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"num_domains={self.num_domains}, learnable={self.learnable}, "
            f"min_temperature={self.min_temperature}, reduction={self.reduction!r}, backend={self.backend!r}"
        )


class _Floor(torch.autograd.Function):
    """max(x, floor) that lets through, below the floor, the gradients that lead back up: clamp would strand x there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, floor: float) -> Tensor:
        return x.clamp(min=floor)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        x, floor = inputs
        ctx.save_for_backward(x < floor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return grad.masked_fill(below & (grad > 0), 0), None


def _table(name: str, value: float | Tensor, num_domains: int) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float32).detach()
    if value.ndim != 0 and value.shape != (num_domains, num_domains):
        raise ValueError(
            f"{name} must be a number or a ({num_domains}, {num_domains}) tensor, got shape {tuple(value.shape)}"
        )
    return value.expand(num_domains, num_domains).clone()
