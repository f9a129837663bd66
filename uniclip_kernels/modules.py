"""The objectives as modules that own their learnable temperatures and offsets."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import _known
from ._backend import check_backend
from ._checks import (
    check_choice,
    check_flag,
    check_number,
    check_process_group,
    check_reduction,
    check_table_type,
    check_tables_now,
    has_values,
    is_integer,
    is_number,
)
from ._contrastive import COMMUNICATIONS, GRADIENT_REDUCTIONS, contrastive
from ._tables import flat_of, mirrored, symmetric_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Loss(nn.Module):
    """An objective with one learnable temperature and offset for each pair of domains.

    Rows whose sample id is negative are padding: they are in no set and get gradient 0. Make ids of 64-bit hashes
    non-negative first: ``ids & (2**63 - 1)``. On the CPU the first batch of padding alone gives a warning.

    Args:
        num_domains: K, the number of domains (2 for image and text).
        temperature: initial τ, a number, a tensor of one element or (K, K); of that only the upper triangle is read.
        offset: initial b; likewise.
        weight: w[anchor domain, positive domain], a number, a tensor of one element or (K, K). A buffer, not learned.
        domain_mask: (K, K) bool, symmetric; False drops a pair of domains from positives and negatives.
        learnable: True makes ``log_temperature`` and ``offset`` Parameters, False makes them buffers.
        min_temperature: a learnable temperature never goes below this in use. 0.01 is CLIP's logit scale of 100.
        normalize: divide each row by max(norm, 1e-12) first.
        process_group, communication, gradient_reduction: of rows that are spread over ranks, as in :func:`mp_nce`.
        reduction: "mean" over anchors that have a positive, "sum" or "none".
        backend: name of a backend, or None for the best one usable.

    Attributes:
        log_temperature: (K (K + 1) / 2,) float32, the logarithm of τ before the floor: the upper triangle, row by row.
        offset: (K (K + 1) / 2,) float32, likewise. Both have one dimension, so that the usual rules leave them out of weight
            decay, which would pull them to 0; and both stay float32 under ``.half()`` and ``.bfloat16()``, in which the steps of
            an optimizer would be rounded away.
        weight: (K, K) float32.
        domain_mask: (K, K) uint8, or None.
    """

    _objective: str
    log_temperature: Tensor
    offset: Tensor
    weight: Tensor
    domain_mask: Tensor | None

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
        normalize: bool = True,
        process_group: ProcessGroup | None = None,
        communication: str = "gather",
        gradient_reduction: str = "mean",
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not is_integer(num_domains):
            raise TypeError(f"num_domains must be an integer, got {num_domains!r}")
        if num_domains < 1:
            raise ValueError(f"num_domains must be at least 1, got {num_domains}")
        if not is_number(min_temperature):
            raise TypeError(f"min_temperature must be a number, got {type(min_temperature).__name__}")
        check_number("min_temperature", min_temperature, torch.float32)
        min_temperature = float(min_temperature)
        check_flag("learnable", learnable)
        check_flag("normalize", normalize)
        check_process_group(process_group)
        check_choice("communication", communication, COMMUNICATIONS)
        check_choice("gradient_reduction", gradient_reduction, GRADIENT_REDUCTIONS)
        check_reduction(reduction)
        check_backend(backend)
        tables = {"temperature": temperature, "offset": offset, "weight": weight}
        tau, b, w = (_table(name, value, num_domains) for name, value in tables.items())
        tau, b = (mirrored(table)[0] for table in (tau, b))
        if domain_mask is not None:
            check_table_type("domain_mask", domain_mask)
            if domain_mask.shape != w.shape:
                raise ValueError(f"domain_mask must have shape {tuple(w.shape)}, got {tuple(domain_mask.shape)}")
        check_tables_now(tau, b, w, domain_mask)
        if learnable and has_values(tau) and (flat_of(tau) < min_temperature).any():
            raise ValueError(f"temperature must be at least min_temperature={min_temperature}, got {temperature}")
        self.num_domains = int(num_domains)
        self.learnable = learnable
        self.min_temperature = min_temperature
        self.normalize = normalize
        self.process_group = process_group
        self.communication = communication
        self.gradient_reduction = gradient_reduction
        self.reduction = reduction
        self.backend = backend
        self._warned = False
        for name, value in (("log_temperature", flat_of(tau).log()), ("offset", flat_of(b))):
            if learnable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("weight", w)
        # In integers, since AveragedModel takes averages of buffers.
        self.register_buffer("domain_mask", None if domain_mask is None else domain_mask.to(torch.uint8, copy=True))

    @property
    def temperature(self) -> Tensor:
        """(K, K) τ as used by the loss, symmetric: exp(log_temperature), not below ``min_temperature`` when learnable."""
        tau = self.log_temperature.exp()
        if self.learnable:
            tau = _Floor.apply(tau, tau.detach().clamp(min=self.min_temperature))
        return symmetric_of(tau, self.num_domains)

    @property
    def offsets(self) -> Tensor:
        """(K, K) b as used by the loss, symmetric."""
        return symmetric_of(self.offset, self.num_domains)

    def forward(
        self,
        embeddings: Tensor,
        sample_ids: Tensor,
        domain_ids: Tensor | None = None,
        *,
        exclude_ids: Tensor | None = None,
        anchor_weight: Tensor | None = None,
        candidates: Tensor | None = None,
        candidate_sample_ids: Tensor | None = None,
        candidate_domain_ids: Tensor | None = None,
        candidate_exclude_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of (M, D) ``embeddings``; see :func:`uniclip_kernels.mp_nce`."""
        loss = contrastive(
            self._objective,
            embeddings=embeddings,
            sample_ids=sample_ids,
            domain_ids=domain_ids,
            temperature=self.temperature,
            offset=self.offsets,
            weight=self.weight,
            domain_mask=self._mask(),
            exclude_ids=exclude_ids,
            anchor_weight=anchor_weight,
            candidates=candidates,
            candidate_sample_ids=candidate_sample_ids,
            candidate_domain_ids=candidate_domain_ids,
            candidate_exclude_ids=candidate_exclude_ids,
            process_group=self.process_group,
            communication=self.communication,
            gradient_reduction=self.gradient_reduction,
            normalize=self.normalize,
            reduction=self.reduction,
            backend=self.backend,
        )
        self._warn_of_padding(sample_ids)
        return loss

    def _mask(self) -> Tensor | None:
        stored = self.domain_mask
        if stored is None:
            return None
        mask = stored.view(torch.bool)
        if mask.is_cuda and not _known.is_traced(stored):
            if _known.kept(stored) is None and not torch.cuda.is_current_stream_capturing():
                _known.keep(stored, tuple(mask.flatten().tolist()))  # waits for the device, once for each mask
            if (values := _known.kept(stored)) is not None:
                _known.keep(mask, values)
        return mask

    def _warn_of_padding(self, sample_ids: Tensor) -> None:
        """Where that can be seen without waiting for a device."""
        if self._warned or torch.compiler.is_compiling():
            return
        if sample_ids.device.type == "cpu" and has_values(sample_ids) and sample_ids.numel() and (sample_ids < 0).all():
            self._warned = True
            warnings.warn(
                "every sample id of the batch is negative, which means padding: the loss is 0. Make ids of 64-bit hashes "
                "non-negative first: ids & (2**63 - 1)",
                stacklevel=5,  # behind two of nn.Module's
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loss:
        """With the same process group, which has no copies: averages of weights (AveragedModel) are made of copies."""
        memo[id(self.process_group)] = self.process_group
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Loss:
        """Casts to 16 bits make the tables float32."""

        def wide(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            narrow = out.is_floating_point() and out.element_size() < 4
            return tensor.to(out.device, torch.float32) if narrow else out

        return super()._apply(wide, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Takes what version 0.1.0 saved too: (K, K) tables and a bool mask."""
        for name in ("log_temperature", "offset"):
            table = state_dict.get(prefix + name)
            if isinstance(table, Tensor) and table.shape == (self.num_domains, self.num_domains):
                state_dict[prefix + name] = flat_of(table)
        mask = state_dict.get(prefix + "domain_mask")
        if isinstance(mask, Tensor):
            state_dict[prefix + "domain_mask"] = mask.to(torch.uint8)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"num_domains={self.num_domains}, learnable={self.learnable}, min_temperature={self.min_temperature}, "
            f"normalize={self.normalize}, reduction={self.reduction!r}, backend={self.backend!r}"
        )


class MPNCELoss(_Loss):
    __doc__ = f"MP-NCE: see :func:`uniclip_kernels.mp_nce`. {_Loss.__doc__}"
    _objective = "mp_nce"


class SupConLoss(_Loss):
    __doc__ = f"Supervised contrastive loss: see :func:`uniclip_kernels.sup_con`. {_Loss.__doc__}"
    _objective = "sup_con"


class MILNCELoss(_Loss):
    __doc__ = f"MIL-NCE, whose positives have no weights: see :func:`uniclip_kernels.mil_nce`. {_Loss.__doc__}"
    _objective = "mil_nce"

    def __init__(self, num_domains: int = 2, **options: Any) -> None:
        if "weight" in options:
            raise TypeError("weight must not be given: the positives of MIL-NCE have none")
        super().__init__(num_domains, **options)


class SigLIPLoss(_Loss):
    __doc__ = f"""Sigmoid loss: see :func:`uniclip_kernels.siglip`. SigLIP's scale t and bias b are 1 / temperature and
    -offset / temperature; it starts from t = 10 and b = -10, which are ``temperature=0.1, offset=1.0``. {_Loss.__doc__}"""
    _objective = "siglip"

    def __init__(
        self, num_domains: int = 2, *, temperature: float | Tensor = 0.1, offset: float | Tensor = 1.0, **options: Any
    ) -> None:
        super().__init__(num_domains, temperature=temperature, offset=offset, **options)


class _Floor(torch.autograd.Function):
    """``floored``, which is x or above it, with gradients that lead back up where it is above: clamp would strand x there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, floored: Tensor) -> Tensor:
        return floored.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, floored = inputs
        ctx.save_for_backward(x < floored)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return grad.masked_fill(below & (grad > 0), 0), None


def _table(name: str, value: float | Tensor, num_domains: int) -> Tensor:
    check_table_type(name, value)
    if not isinstance(value, Tensor):
        check_number(name, value, torch.float32)
    value = torch.as_tensor(value, dtype=torch.float32).detach()
    shape = (num_domains, num_domains)
    if value.shape not in ((), (1,), shape):
        raise ValueError(
            f"{name} must be a number, a tensor of one element or of shape {shape}, got shape {tuple(value.shape)}"
        )
    return value.expand(shape).clone()
