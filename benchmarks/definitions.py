"""The right answers: the losses by their definitions, in float64, with their gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from uniclip_kernels import reference

from .problems import Batch, loss_and_gradients

PANEL = 1 << 25  # elements
SIGLIP_BIAS = -10.0  # where SigLIP begins


def expected(batch: Batch, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The loss and its gradients from the specification; M x M matrices, so for small batches only."""
    batch = _in(batch, dtype)
    loss = reference.sup_con if batch.objective == "SupCon" else reference.mp_nce
    tables = {"temperature": batch.temperature, "offset": batch.offset, "domain_mask": batch.domain_mask}
    options = tables | batch.candidates() | {"normalize": batch.normalize}
    return loss_and_gradients(loss(batch.embeddings, batch.sample_ids, batch.domain_ids, **options), batch)


def expected_mp_nce(batch: Batch, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Each positive against the negatives alone, also where the objective is SupCon."""
    return expected(replace(batch, objective="MP-NCE"), dtype)


def expected_with_queue(batch: Batch, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return expected(batch, dtype)  # and never that of large batches, which know no queue


def expected_sigmoid(batch: Batch, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """SigLIP's loss: a sum over all pairs, by half the number of rows."""
    batch = _in(batch, dtype)
    s, positive = _images_with_texts(batch)
    loss = F.binary_cross_entropy_with_logits(s + SIGLIP_BIAS, positive, reduction="sum")
    return loss_and_gradients(2 * loss / len(batch.embeddings), batch)


def expected_cross_entropy(batch: Batch, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The mean of both directions, with as much of the target on each positive: InfoNCE where there is one."""
    batch = _in(batch, dtype)
    s, positive = _images_with_texts(batch)
    to_text, to_image = (F.cross_entropy(a, p / p.sum(1, keepdim=True)) for a, p in ((s, positive), (s.T, positive.T)))
    return loss_and_gradients((to_text + to_image) / 2, batch)


#: Whose answers :func:`expected_when_large` has, as long as linear_cross_entropy is given one text an image.
ALIKE_IN_PAIRS = expected, expected_cross_entropy


def _images_with_texts(batch: Batch) -> tuple[Tensor, Tensor]:
    """Similarities of rows of domain 0 with those of domain 1, and 1 where a pair is of one sample, else 0."""
    image = batch.domain_ids == 0
    s = batch.embeddings[image] @ batch.embeddings[~image].T / batch.tau
    return s, (batch.sample_ids[image][:, None] == batch.sample_ids[~image]).to(s.dtype)


def _in(batch: Batch, dtype: torch.dtype) -> Batch:
    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(dtype).requires_grad_(t.requires_grad)

    tables = {"temperature": leaf(batch.temperature), "offset": leaf(batch.offset)}
    queue = None if batch.queue is None else batch.queue.to(dtype)
    return replace(batch, embeddings=leaf(batch.embeddings), queue=queue, **tables)


def expected_when_large(batch: Batch) -> list[Tensor]:
    """The same for some anchors at a time, and no queue: 6 M² D flops, and memory for a few matrices of PANEL elements.

    In float64 for rows of float32; in float32 for those of 16 bits, of whose tolerance its error is a thousandth.
    """
    dtype = torch.float64 if batch.embeddings.dtype == torch.float32 else torch.float32

    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(dtype).requires_grad_()

    z, temperature, offset = leaf(batch.embeddings), leaf(batch.temperature), leaf(batch.offset)
    unit = F.normalize(z, dim=1) if batch.normalize else z
    rows, m, sup_con = leaf(unit), len(z), batch.objective == "SupCon"
    lower, upper = (
        f(batch.domain_ids[:, None], torch.arange(2, device=z.device)) for f in (torch.minimum, torch.maximum)
    )
    is_of = (batch.domain_ids == torch.arange(2, device=z.device)[:, None]).to(dtype)
    total, grads = z.new_zeros(()), [torch.zeros_like(t) for t in (rows, temperature, offset)]
    height = max(1, PANEL // m)
    for start in range(0, m, height):
        panel = slice(start, start + height)
        # Of each row the (2,) entries for its domain with either, spread over the columns by their domain: as a product, since
        # the gradient of an index adds up the entries of a column one after the other.
        tau, b = (t[lower[panel], upper[panel]] @ is_of for t in (temperature, offset))
        s = (rows[panel] @ rows.T - b) / tau
        same = batch.sample_ids[panel, None] == batch.sample_ids
        positive = same.clone()
        positive.diagonal(start)[: len(positive)] = False
        no_rival = same ^ positive if sup_con else same
        out = torch.zeros_like(same)
        if batch.domain_mask is not None:
            out = ~batch.domain_mask.to(z.device)[batch.domain_ids[panel]][:, batch.domain_ids]
        nu = s.masked_fill(no_rival | out, -torch.inf).logsumexp(1)
        positive &= ~out
        row, column = positive.nonzero(as_tuple=True)
        each = nu[row] - s[row, column]
        each = (each if sup_con else F.softplus(each, threshold=50)) / positive.sum(1)[row]
        loss = each.sum() / m  # every row has a positive
        total += loss.detach()
        for grad, more in zip(grads, torch.autograd.grad(loss, (rows, temperature, offset)), strict=True):
            grad += more
    if batch.normalize:
        (grads[0],) = torch.autograd.grad(unit, z, grads[0])
    return [
        total,
        *(
            g
            for g, t in zip(grads, (batch.embeddings, batch.temperature, batch.offset), strict=True)
            if t.requires_grad
        ),
    ]


def expected_products(batch: Batch) -> list[Tensor]:
    """(Z Zᵀ) Z in float64, by way of the small Zᵀ Z."""
    z = batch.embeddings.detach().double()
    return [z @ (z.T @ z)]
