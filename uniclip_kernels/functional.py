"""The public functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _known
from ._checks import check_embeddings, is_integer
from ._contrastive import contrastive, similarity

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def mp_nce(
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None = None,
    *,
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
    process_group: ProcessGroup | None = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
    reduction: str = "mean",
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """MP-NCE loss (UniCLIP, arXiv 2209.13430): every positive against the negatives alone, in memory linear in the rows.

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
        exclude_ids: (M,) integer, the same for all rows and candidates of a sample: samples of one id >= 0 are no negatives of
            each other, as with pictures of one caption or near duplicates.
        anchor_weight: (M,) floating point, not negative: what the loss of each row counts for. Differentiable.
        candidates: (Q, D) rows that are compared with, but are no anchors: a queue, hard negatives, documents. In the dtype and
            on the device of the embeddings; they get a gradient if they require one. Those with the sample id of a row are its
            positives.
        candidate_sample_ids: (Q,) integer, needed with ``candidates``.
        candidate_domain_ids, candidate_exclude_ids: (Q,), as for rows.
        process_group: ranks whose rows are one batch, each with rows and candidates of its own, and sample ids that mean the same
            on all. The loss is that of all rows, the same on every rank ("none": of the own rows); gradients are complete.
        communication: "gather" sends every rank's rows to all; "ring" passes them by, in memory that does not grow with the
            number of ranks.
        gradient_reduction: "mean" if gradients of parameters are then averaged over ranks (DistributedDataParallel, FSDP),
            "sum" if they are added: either way parameters end with the gradient of one process with all rows.
        reduction: "mean" over the anchors that have a positive, weighted by ``anchor_weight``, "sum", or "none": (M,) with 0
            where there is no positive.
        normalize: divide each row by max(norm, 1e-12) first; False takes the rows as they are.
        backend: "triton", "cuda", "cpu", "reference", or None for the best usable one on the tensors' device.

    Returns:
        The loss, float32 (float64 for float64 embeddings). Differentiable once in embeddings, candidates, anchor_weight,
        temperature and offset; bitwise repeatable. M = 0, or no row with a positive, gives 0 with gradient 0.

    Raises:
        TypeError, ValueError: for a wrong argument, naming it; ValueError for a backend that cannot run, with the reason. On a
            GPU, tensor values (domain ids in range, positive temperatures, symmetric mask) are asserted on the device without
            waiting for it. UNICLIP_CHECK_VALUES=0 leaves values unchecked, on the CPU too: wrong ones then give undefined
            results, in safe memory.
    """
    return contrastive(
        "mp_nce",
        embeddings=embeddings,
        sample_ids=sample_ids,
        domain_ids=domain_ids,
        temperature=temperature,
        offset=offset,
        weight=weight,
        domain_mask=domain_mask,
        exclude_ids=exclude_ids,
        anchor_weight=anchor_weight,
        candidates=candidates,
        candidate_sample_ids=candidate_sample_ids,
        candidate_domain_ids=candidate_domain_ids,
        candidate_exclude_ids=candidate_exclude_ids,
        process_group=process_group,
        communication=communication,
        gradient_reduction=gradient_reduction,
        reduction=reduction,
        normalize=normalize,
        backend=backend,
    )


def sup_con(
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None = None,
    *,
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
    process_group: ProcessGroup | None = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
    reduction: str = "mean",
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Supervised contrastive loss (Khosla et al., arXiv 2004.11362, L_out): every positive against all other rows.

    Each anchor i and each other row p of its sample give ``-log(e^{s_ip} / Σ_a e^{s_ia})`` over all rows a but i itself; an
    anchor's loss is the weighted mean over its positives. Arguments, result and errors are those of :func:`mp_nce`.
    """
    return contrastive(
        "sup_con",
        embeddings=embeddings,
        sample_ids=sample_ids,
        domain_ids=domain_ids,
        temperature=temperature,
        offset=offset,
        weight=weight,
        domain_mask=domain_mask,
        exclude_ids=exclude_ids,
        anchor_weight=anchor_weight,
        candidates=candidates,
        candidate_sample_ids=candidate_sample_ids,
        candidate_domain_ids=candidate_domain_ids,
        candidate_exclude_ids=candidate_exclude_ids,
        process_group=process_group,
        communication=communication,
        gradient_reduction=gradient_reduction,
        reduction=reduction,
        normalize=normalize,
        backend=backend,
    )


def mil_nce(
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    offset: float | Tensor = 0.0,
    domain_mask: Tensor | None = None,
    exclude_ids: Tensor | None = None,
    anchor_weight: Tensor | None = None,
    candidates: Tensor | None = None,
    candidate_sample_ids: Tensor | None = None,
    candidate_domain_ids: Tensor | None = None,
    candidate_exclude_ids: Tensor | None = None,
    process_group: ProcessGroup | None = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
    reduction: str = "mean",
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """MIL-NCE loss (Miech et al., arXiv 1912.06430): all positives of a row together against the negatives.

    ``-log(Σ_p e^{s_ip} / (Σ_p e^{s_ip} + Σ_n e^{s_in}))`` for each anchor i. Arguments, result and errors are those of
    :func:`mp_nce`, without ``weight``.
    """
    return contrastive(
        "mil_nce",
        embeddings=embeddings,
        sample_ids=sample_ids,
        domain_ids=domain_ids,
        temperature=temperature,
        offset=offset,
        weight=1.0,
        domain_mask=domain_mask,
        exclude_ids=exclude_ids,
        anchor_weight=anchor_weight,
        candidates=candidates,
        candidate_sample_ids=candidate_sample_ids,
        candidate_domain_ids=candidate_domain_ids,
        candidate_exclude_ids=candidate_exclude_ids,
        process_group=process_group,
        communication=communication,
        gradient_reduction=gradient_reduction,
        reduction=reduction,
        normalize=normalize,
        backend=backend,
    )


def siglip(
    embeddings: Tensor,
    sample_ids: Tensor,
    domain_ids: Tensor | None = None,
    *,
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
    process_group: ProcessGroup | None = None,
    communication: str = "gather",
    gradient_reduction: str = "mean",
    reduction: str = "mean",
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Sigmoid loss (SigLIP, Zhai et al., arXiv 2303.15343): every pair for itself.

    ``Σ_p w softplus(-s_ip) + Σ_n softplus(s_in)`` for each row i. SigLIP's scale t and bias b are 1 / temperature and
    -offset / temperature: ``temperature=1 / t, offset=-b / t``. "mean" is over the rows with a positive or a negative: with one
    picture and one text a sample, compared with each other alone, that is SigLIP's loss. Arguments, result and errors are
    otherwise those of :func:`mp_nce`.
    """
    return contrastive(
        "siglip",
        embeddings=embeddings,
        sample_ids=sample_ids,
        domain_ids=domain_ids,
        temperature=temperature,
        offset=offset,
        weight=weight,
        domain_mask=domain_mask,
        exclude_ids=exclude_ids,
        anchor_weight=anchor_weight,
        candidates=candidates,
        candidate_sample_ids=candidate_sample_ids,
        candidate_domain_ids=candidate_domain_ids,
        candidate_exclude_ids=candidate_exclude_ids,
        process_group=process_group,
        communication=communication,
        gradient_reduction=gradient_reduction,
        reduction=reduction,
        normalize=normalize,
        backend=backend,
    )


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
    return similarity(
        x,
        y,
        x_domain_ids,
        y_domain_ids,
        temperature=temperature,
        offset=offset,
        normalize=normalize,
        backend=backend,
    )


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
