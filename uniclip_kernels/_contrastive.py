"""From the arguments of the public functions to the operators: checked and prepared once, in one place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _known, reference
from ._backend import REFERENCE, choose, reads_on_host
from ._checks import (
    check_anchor_weight,
    check_choice,
    check_embeddings,
    check_flag,
    check_ids,
    check_reduction,
    check_reverse_mode,
    check_same_kind,
    check_similarity_values,
    check_tables,
    check_values,
)
from ._layout import FEW_DOMAINS
from ._problem import Inputs, Options, SimilarityInputs, SimilarityOptions, accumulator_dtype
from ._tables import full_table, num_domains_of, symmetric_table

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

COMMUNICATIONS = ("gather", "ring")
GRADIENT_REDUCTIONS = ("mean", "sum")


def contrastive(
    objective: str,
    *,
    process_group: ProcessGroup | None,
    communication: str,
    gradient_reduction: str,
    **call: Any,
) -> Tensor:
    """Any of the objectives, by its name; see :func:`uniclip_kernels.mp_nce`. ``call``: the arguments of :func:`prepare`."""
    anchor_weight, reduction = call["anchor_weight"], call["reduction"]
    if process_group is not None:
        from ._ranks import Way, across_ranks

        way = Way(communication, gradient_reduction, reduction, anchor_weight is not None)
        return across_ranks(objective, call, process_group, way)
    check_choice("communication", communication, COMMUNICATIONS)
    check_choice("gradient_reduction", gradient_reduction, GRADIENT_REDUCTIONS)
    inputs, options = prepare(objective, **call)
    if options.backend == REFERENCE:
        return _by_reference(inputs, options, anchor_weight, reduction)
    differentiable = inputs.embeddings, inputs.candidates, inputs.temperature, inputs.offset
    differentiable = [t for t in differentiable if t is not None]
    check_reverse_mode(objective, *differentiable)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    loss, counts, *_ = torch.ops.uniclip_kernels.contrastive_fwd(*inputs, keep, *options)
    return reduced(loss, counts, anchor_weight, reduction)


def reduced(
    loss: Tensor,
    counts: Tensor,
    anchor_weight: Tensor | None,
    reduction: str,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """From the loss of each row and whether it counts; ``total`` adds up over ranks."""
    if anchor_weight is None:
        whole = total(counts.sum().to(loss.dtype)).clamp(min=1)
    else:
        alpha = torch.where(counts, anchor_weight.to(loss.dtype), 0)
        loss, whole = loss * alpha, total(alpha.sum())
        whole = torch.where(whole > 0, whole, torch.inf)
    if reduction == "none":
        return loss
    return total(loss.sum()) / whole if reduction == "mean" else total(loss.sum())


def prepare(
    objective: str,
    *,
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    temperature: float | Tensor,
    offset: float | Tensor,
    weight: float | Tensor,
    domain_mask: Tensor | None,
    exclude_ids: Tensor | None,
    anchor_weight: Tensor | None,
    candidates: Tensor | None,
    candidate_sample_ids: Tensor | None,
    candidate_domain_ids: Tensor | None,
    candidate_exclude_ids: Tensor | None,
    reduction: str,
    normalize: bool,
    backend: str | None,
) -> tuple[Inputs, Options]:
    """What the operators take, after checks of all that the host knows."""
    check_embeddings("embeddings", embeddings)
    check_ids("embeddings", embeddings, sample_ids=sample_ids)
    check_ids("embeddings", embeddings, optional=True, domain_ids=domain_ids, exclude_ids=exclude_ids)
    of_candidates = {
        "candidate_sample_ids": candidate_sample_ids,
        "candidate_domain_ids": candidate_domain_ids,
        "candidate_exclude_ids": candidate_exclude_ids,
    }
    if candidates is None:
        for name, ids in of_candidates.items():
            if ids is not None:
                raise ValueError(f"{name} must be None where there are no candidates")
    else:
        check_embeddings("candidates", candidates)
        check_same_kind("candidates", candidates, "embeddings", embeddings)
        if candidate_sample_ids is None:
            raise ValueError("candidate_sample_ids must be given with candidates, got None")
        check_ids("candidates", candidates, optional=True, **of_candidates)
    check_tables(embeddings, temperature=temperature, offset=offset, weight=weight, domain_mask=domain_mask)
    if anchor_weight is not None:
        check_anchor_weight(anchor_weight, embeddings, sample_ids)
    check_reduction(reduction)
    check_flag("normalize", normalize)
    chosen, identity = choose(backend, embeddings.device, embeddings.dtype, objective)
    on_host = reads_on_host(chosen)

    k, ignore_domains = num_domains_of(temperature, offset, weight, domain_mask)
    like = embeddings.new_empty(0, dtype=accumulator_dtype(embeddings.dtype))
    tau, b, w = (full_table(value, k, like) for value in (temperature, offset, weight))
    allowed = None if on_host else _allowed(domain_mask)
    if domain_mask is not None and domain_mask.device != embeddings.device:
        device = embeddings.device
        domain_mask = domain_mask.to(device) if allowed is None else _on_device(allowed, device)
    ids = sample_ids, domain_ids, exclude_ids
    inputs = Inputs(embeddings, *ids, candidates, *of_candidates.values(), tau, b, w.detach(), domain_mask)
    sizes = None if ignore_domains or on_host else _sizes(embeddings, domain_ids, k)
    options = Options(objective, normalize, ignore_domains, sizes, allowed, chosen, identity)
    return inputs, options


def _by_reference(inputs: Inputs, options: Options, anchor_weight: Tensor | None, reduction: str) -> Tensor:
    k, like = inputs.temperature.shape[0], inputs.temperature
    tau, b = symmetric_table(inputs.temperature, k, like), symmetric_table(inputs.offset, k, like)
    inputs = inputs._replace(temperature=tau, offset=b)
    check_values(inputs, options)
    given = inputs._asdict()
    if options.ignore_domains:
        given |= {"domain_ids": None, "candidate_domain_ids": None}
    if options.objective == "mil_nce":
        del given["weight"]
    function = getattr(reference, options.objective)
    return function(**given, anchor_weight=anchor_weight, reduction=reduction, normalize=options.normalize)


def similarity(
    x: Tensor,
    y: Tensor | None,
    x_domain_ids: Tensor | None,
    y_domain_ids: Tensor | None,
    *,
    temperature: float | Tensor,
    offset: float | Tensor,
    normalize: bool,
    backend: str | None,
) -> Tensor:
    """See :func:`uniclip_kernels.domain_similarity`."""
    check_embeddings("x", x)
    if y is None:
        if y_domain_ids is not None:
            raise ValueError("y_domain_ids must be None when y is None: y is then x")
        y, y_domain_ids = x, x_domain_ids
    else:
        check_embeddings("y", y)
        check_same_kind("y", y, "x", x)
    check_ids("x", x, optional=True, x_domain_ids=x_domain_ids)
    check_ids("y", y, optional=True, y_domain_ids=y_domain_ids)
    check_tables(x, temperature=temperature, offset=offset)
    check_flag("normalize", normalize)
    chosen, identity = choose(backend, x.device, x.dtype)

    k, ignore_domains = num_domains_of(temperature, offset)
    like = x.new_empty(0, dtype=accumulator_dtype(x.dtype))
    tau, b = symmetric_table(temperature, k, like), symmetric_table(offset, k, like)
    inputs = SimilarityInputs(x, y, x_domain_ids, y_domain_ids, tau, b)
    if chosen == REFERENCE:
        check_similarity_values(inputs, ignore_domains)
        ids = (None, None) if ignore_domains else (x_domain_ids, y_domain_ids)
        return reference.domain_similarity(x, y, *ids, temperature=tau, offset=b, normalize=normalize)
    check_reverse_mode("domain_similarity", x, y, tau, b)
    options = SimilarityOptions(normalize, ignore_domains, chosen, identity)
    return torch.ops.uniclip_kernels.domain_similarity_fwd(*inputs, *options)


def _sizes(embeddings: Tensor, domain_ids: Tensor | None, num_domains: int) -> list[int] | None:
    """Rows of each domain where the host can tell."""
    if domain_ids is None or num_domains > FEW_DOMAINS:
        return None
    sizes = _known.kept(domain_ids)
    if sizes is None or len(sizes) > num_domains or sum(sizes) != embeddings.shape[0]:
        return None
    return [*sizes, *[0] * (num_domains - len(sizes))]


def _allowed(domain_mask: Tensor | None) -> tuple[bool, ...] | None:
    """The mask row by row where the host can tell."""
    if domain_mask is None or _known.is_traced(domain_mask):
        return None
    return tuple(domain_mask.flatten().tolist()) if domain_mask.device.type == "cpu" else _known.kept(domain_mask)


@functools.cache  # never dropped, since CUDA graphs may read it
def _on_device(allowed: tuple[bool, ...], device: torch.device) -> Tensor:
    """A (K, K) mask from its values; copied to the device once, so that CUDA graphs can be captured."""
    k = math.isqrt(len(allowed))
    with torch.inference_mode(False):  # it will be used in training too
        return torch.tensor(allowed).view(k, k).to(device)
