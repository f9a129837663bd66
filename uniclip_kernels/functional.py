"""The public functions: check the arguments, bring scalars and matrices into one form, call the chosen backend."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _known, reference
from ._backend import REFERENCE, choose, reads_on_host
from ._checks import (
    check_embeddings,
    check_flag,
    check_ids,
    check_reduction,
    check_reverse_mode,
    check_tables,
    check_values,
    is_integer,
)
from ._layout import FEW_DOMAINS
from ._problem import accumulator_dtype
from ._tables import full_table, num_domains_of, symmetric_table


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
    backend: str | None = None,
) -> Tensor:
    """MP-NCE loss (UniCLIP, arXiv 2209.13430): every positive against the negatives alone, in memory linear in M.

    With s_ij = (cos(z_i, z_j) - offset) / temperature, each anchor i and each other row p of its sample give
    ``-log(e^{s_ip} / (e^{s_ip} + Σ_n e^{s_in}))`` over the rows n of other samples; an anchor's loss is the weighted mean over
    its positives. A row with positives but no negatives has loss 0.

    Args:
        embeddings: (M, D) float32, bfloat16, float16, or float64 on the CPU. Any strides.
        sample_ids: (M,) integer; rows with equal ids are positives of each other. Rows with a negative id are padding:
            they are in no set and get gradient 0. Make ids of 64-bit hashes non-negative first: ``ids & (2**63 - 1)``.
        domain_ids: (M,) integer in [0, K), e.g. 0 for image and 1 for text; None puts all rows in domain 0. Those of padding
            do not matter.
        temperature: τ > 0; a number, a tensor of one element or (K, K), one for each pair of domains. Of a (K, K) tensor only
            the upper triangle is read, and gets the gradient.
        offset: b, subtracted from the cosine; likewise.
        weight: weight of each positive by [anchor domain, positive domain]; a number, a tensor of one element or (K, K). No
            gradient.
        domain_mask: (K, K) bool, symmetric; False removes a pair of domains from positives and negatives. On the CPU it may stay
            there: then a GPU is never given the pairs that it removes, if ``domain_ids`` are those of :func:`stack_views`.
        reduction: "mean" over the anchors that have a positive, "sum", or "none": (M,) with 0 where there is no positive.
        normalize: divide each row by max(norm, 1e-12) first; False takes the rows as they are.
        backend: "triton", "cuda", "cpu", "reference", or None for the best usable one on the tensors' device.

    Returns:
        The loss, float32 (float64 for float64 embeddings). Differentiable once in embeddings, temperature and offset; bitwise
        repeatable. M = 0, or no row with a positive, gives 0 with gradient 0.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it; ValueError for a backend that cannot run, with the reason. On a
            GPU, tensor values (domain ids in range, positive temperatures, symmetric mask) are asserted on the device without
            waiting for it. UNICLIP_CHECK_VALUES=0 leaves values unchecked, on the CPU too: wrong ones then give undefined
            results, in safe memory.
    """
    check_embeddings("embeddings", embeddings)
    check_ids("sample_ids", sample_ids, "embeddings", embeddings)
    if domain_ids is not None:
        check_ids("domain_ids", domain_ids, "embeddings", embeddings)
    check_tables(embeddings, temperature=temperature, offset=offset, weight=weight, domain_mask=domain_mask)
    check_reduction(reduction)
    check_flag("normalize", normalize)
    chosen = choose(backend, embeddings.device, embeddings.dtype)
    on_host = reads_on_host(chosen)

    k, ignore_domains = num_domains_of(temperature, offset, weight, domain_mask)
    like = embeddings.new_empty(0, dtype=accumulator_dtype(embeddings.dtype))
    tau, b, w = (full_table(value, k, like) for value in (temperature, offset, weight))
    w = w.detach()
    allowed = None if on_host else _allowed(domain_mask)
    if domain_mask is not None and domain_mask.device != embeddings.device:
        device = embeddings.device
        domain_mask = domain_mask.to(device) if allowed is None else _on_device(allowed, device)
    if chosen == REFERENCE:
        tau, b = symmetric_table(tau, k, like), symmetric_table(b, k, like)
        given = {} if domain_ids is None else {"domain_ids": domain_ids}
        check_values(tau, b, given, None if ignore_domains else k, w, domain_mask, padding=sample_ids < 0)
        options = dict(temperature=tau, offset=b, weight=w, domain_mask=domain_mask, reduction=reduction)
        ids = None if ignore_domains else domain_ids
        return reference.mp_nce(embeddings, sample_ids, ids, normalize=normalize, **options)
    check_reverse_mode("mp_nce", embeddings, tau, b)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (embeddings, tau, b))
    known = _sizes(embeddings, None if ignore_domains else domain_ids, k, on_host), allowed
    tables = tau, b, w, domain_mask
    loss, num_positives, *_ = torch.ops.uniclip_kernels.mp_nce_fwd(
        embeddings, sample_ids, domain_ids, *tables, keep, ignore_domains, *known, normalize, chosen
    )
    if reduction == "none":
        return loss
    return loss.sum() / (num_positives > 0).sum().clamp(min=1) if reduction == "mean" else loss.sum()


def domain_similarity(
    x: Tensor,
    y: Tensor | None = None,
    x_domain_ids: Tensor | None = None,
    y_domain_ids: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    offset: float | Tensor = 0.0,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Domain-dependent similarity (UniCLIP, section 3.3): s_ij = (cos(x_i, y_j) - b[d_i, d_j]) / τ[d_i, d_j].

    Args:
        x: (Mx, D) float32, bfloat16, float16, or float64 on the CPU.
        y: (My, D) of the same dtype and device; None compares x with itself.
        x_domain_ids, y_domain_ids: (Mx,) and (My,) integer in [0, K); None is domain 0. With y None, y takes x's.
        temperature, offset, normalize, backend: as in :func:`mp_nce`.

    Returns:
        (Mx, My) similarities, float32 (float64 for float64). Differentiable once in x, y, temperature and offset.
    """
    check_embeddings("x", x)
    if y is None:
        if y_domain_ids is not None:
            raise ValueError("y_domain_ids must be None when y is None: y is then x")
        y, y_domain_ids = x, x_domain_ids
    else:
        check_embeddings("y", y)
        if y.shape[1] != x.shape[1] or y.dtype != x.dtype or y.device != x.device:
            raise ValueError(
                f"y must have the D, dtype and device of x, {x.shape[1]}, {x.dtype}, {x.device}, "
                f"got {y.shape[1]}, {y.dtype}, {y.device}"
            )
    if x_domain_ids is not None:
        check_ids("x_domain_ids", x_domain_ids, "x", x)
    if y_domain_ids is not None:
        check_ids("y_domain_ids", y_domain_ids, "y", y)
    check_tables(x, temperature=temperature, offset=offset)
    check_flag("normalize", normalize)
    chosen = choose(backend, x.device, x.dtype)

    k, ignore_domains = num_domains_of(temperature, offset)
    like = x.new_empty(0, dtype=accumulator_dtype(x.dtype))
    tau, b = symmetric_table(temperature, k, like), symmetric_table(offset, k, like)
    if chosen == REFERENCE:
        named = {"x_domain_ids": x_domain_ids, "y_domain_ids": y_domain_ids}
        given = {name: ids for name, ids in named.items() if ids is not None}
        check_values(tau, b, given, None if ignore_domains else k)
        ids = (None, None) if ignore_domains else (x_domain_ids, y_domain_ids)
        return reference.domain_similarity(x, y, *ids, temperature=tau, offset=b, normalize=normalize)
    check_reverse_mode("domain_similarity", x, y, tau, b)
    return torch.ops.uniclip_kernels.domain_similarity_fwd(
        x, y, x_domain_ids, y_domain_ids, tau, b, ignore_domains, normalize, chosen
    )


def _sizes(embeddings: Tensor, domain_ids: Tensor | None, num_domains: int, on_host: bool) -> list[int] | None:
    """Rows of each domain where the host can tell, and the backend would not read them itself."""
    if domain_ids is None or on_host or num_domains > FEW_DOMAINS:
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


def stack_views(views: Sequence[Tensor], domains: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack views of the same N samples into the rows that :func:`mp_nce` takes.

    Args:
        views: (N, D) tensors; row n of each is a view of sample n.
        domains: the domain id of each view, e.g. ``[0, 0, 1]`` for two augmented images and a text.

    Returns:
        embeddings (V·N, D), sample_ids (V·N,) int64, domain_ids (V·N,) int64, views one after the other. Sample ids
        count from 0: where rows of several ranks are to be gathered, first set them apart, by N times the rank if all have N.
    """
    views, domains = _listed("views", views), _listed("domains", domains)
    if not views:
        raise ValueError("views must hold at least one (N, D) tensor, got none")
    for i, view in enumerate(views):
        check_embeddings(f"views[{i}]", view)
        if view.shape != views[0].shape or view.dtype != views[0].dtype or view.device != views[0].device:
            raise ValueError(
                f"views[{i}] must have the shape, dtype and device of views[0], "
                f"{tuple(views[0].shape)}, {views[0].dtype}, {views[0].device}, "
                f"got {tuple(view.shape)}, {view.dtype}, {view.device}"
            )
    if len(domains) != len(views):
        raise ValueError(f"domains must have one id for each of the {len(views)} views, got {len(domains)}")
    if not all(is_integer(d) and d >= 0 for d in domains):
        raise ValueError(f"domains must be non-negative integers, got {domains}")
    domains = [int(d) for d in domains]
    n, device = views[0].shape[0], views[0].device
    sample_ids = torch.arange(n, device=device).repeat(len(views))
    domain_ids = torch.cat([torch.full((n,), d, dtype=torch.long, device=device) for d in domains])
    _known.keep(domain_ids, tuple(n * domains.count(d) for d in range(max(domains) + 1)))
    return torch.cat(views), sample_ids, domain_ids


def _listed(name: str, values: Sequence) -> list:
    try:
        if not isinstance(values, (str, bytes, dict)):
            return list(values)
    except (TypeError, RuntimeError):  # tensors without a dimension, nested ones
        pass
    raise TypeError(f"{name} must be a sequence, got {type(values).__name__}")
