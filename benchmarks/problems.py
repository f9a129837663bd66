"""The inputs that all competitors of an objective share, and the right answer on them in float64."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from uniclip_kernels import reference, stack_views

PANEL = 1 << 25  # elements

#: Domains of the views of a sample, and rows of a queue beside each.
VIEWS = {"MP-NCE": (0, 0, 1), "InfoNCE": (0, 1), "Queue": (0,)}
QUEUED = 16
#: Where the queue ends that makes sense: 65536 rows.
MOST_SAMPLES_BESIDE_QUEUE = 4096


@dataclass(frozen=True)
class Batch:
    """N samples seen as V views: M = V·N rows, view after view, with K = 2 domains.

    MP-NCE: two augmented images and a text, as UniCLIP trains, with learnable temperature and offset.
    InfoNCE: an image and a text, unit rows as CLIP's loss wants them, and a constant temperature of 0.07.
    Queue: one view, compared with 16 N rows of a queue alone, of which the last N are its keys; otherwise as InfoNCE.
    """

    objective: str
    embeddings: Tensor  # (M, D), a leaf that requires its gradient
    sample_ids: Tensor  # (M,)
    domain_ids: Tensor  # (M,)
    temperature: Tensor  # (2, 2)
    offset: Tensor  # (2, 2)
    domain_mask: Tensor | None  # (2, 2), on the host: InfoNCE compares images with texts alone
    normalize: bool
    queue: Tensor | None = None  # (16 N, D), constant

    @property
    def views(self) -> tuple[int, ...]:
        return VIEWS[self.objective]

    @property
    def samples(self) -> int:
        return len(self.embeddings) // len(self.views)

    def candidates(self) -> dict[str, Tensor]:
        """The queue as the arguments of a loss; sample n is the positive of row n, and the queue's domain is 1."""
        if self.queue is None:
            return {}
        ids = torch.arange(len(self.queue), device=self.queue.device).flip(0)
        return {
            "candidates": self.queue,
            "candidate_sample_ids": ids,
            "candidate_domain_ids": torch.ones_like(ids),
        }

    @property
    def leaves(self) -> list[Tensor]:
        """What the gradient is taken with respect to."""
        return [t for t in (self.embeddings, self.temperature, self.offset) if t.requires_grad]


def needed_flops(objective: str, n: int, d: int) -> int:
    """Forward and backward: 8 D for each unordered pair of rows that is compared, of which images with texts alone are."""
    m = num_rows(objective, n)
    return {"InfoNCE": 8 * n * n, "MP-NCE": 4 * m * m, "Queue": 6 * n * QUEUED * n}[objective] * d


def num_rows(objective: str, n: int) -> int:
    """Of the batch and the queue."""
    return n * rows_a_sample(objective)


def rows_a_sample(objective: str) -> int:
    return len(VIEWS[objective]) + QUEUED * (objective == "Queue")


def size_text(objective: str) -> str:
    return f"N rows beside {QUEUED}·N in a queue" if objective == "Queue" else f"M = {rows_a_sample(objective)}·N rows"


def columns(objective: str, dim: int) -> int:
    """Rows of a queue are half as wide as others."""
    return dim // 2 if objective == "Queue" else dim


@functools.lru_cache(maxsize=2)  # one that is measured, one that is checked; a large one takes seconds to make
def make_batch(objective: str, n: int, d: int, dtype: torch.dtype, device: str = "cpu") -> Batch:
    """Always the same one. Views of a sample lie near each other (cos about 0.5), as in a model half trained."""
    generator = torch.Generator().manual_seed(n)
    centre = torch.randn(n, d, generator=generator)
    views = [centre + torch.randn(n, d, generator=generator) for _ in VIEWS[objective]]
    infonce, queue = objective != "MP-NCE", None
    if objective == "Queue":
        older = torch.randn((QUEUED - 1) * n, d, generator=generator)
        queue = F.normalize(torch.cat([older, views[0].flip(0)]), dim=1).to(device, dtype)
        views = [centre]
    if infonce:
        views = [F.normalize(view, dim=1) for view in views]
    # On the device, as in a trainer: so the host knows how many rows each domain has.
    embeddings, sample_ids, domain_ids = stack_views([view.to(device, dtype) for view in views], VIEWS[objective])
    if infonce:
        temperature, offset = torch.full((2, 2), 0.07), torch.zeros(2, 2)
    else:
        temperature, offset = torch.tensor([[0.07, 0.06], [0.06, 0.08]]), torch.tensor([[0.1, 0.0], [0.0, 0.05]])
    return Batch(
        objective,
        embeddings.requires_grad_(),
        sample_ids,
        domain_ids,
        temperature.to(device).requires_grad_(not infonce),
        offset.to(device).requires_grad_(not infonce),
        ~torch.eye(2, dtype=torch.bool) if infonce else None,
        normalize=not infonce,
        queue=queue,
    )


def loss_and_gradients(loss: Tensor, batch: Batch) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, batch.leaves)]


def expected(batch: Batch) -> list[Tensor]:
    """The loss and its gradients in float64, from the specification; M x M matrices, so for small batches only."""

    def exact(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_(t.requires_grad)

    tables = {"temperature": exact(batch.temperature), "offset": exact(batch.offset), "domain_mask": batch.domain_mask}
    z, candidates = exact(batch.embeddings), batch.candidates()
    if candidates:
        candidates["candidates"] = candidates["candidates"].double()
    options = tables | candidates
    loss = reference.mp_nce(z, batch.sample_ids, batch.domain_ids, normalize=batch.normalize, **options)
    leaves = [t for t in (z, tables["temperature"], tables["offset"]) if t.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def expected_when_large(batch: Batch) -> list[Tensor]:
    """The same for some anchors at a time, and no queue: 6 M² D flops, and memory for a few matrices of PANEL elements.

    In float64 for rows of float32; in float32 for those of 16 bits, of whose tolerance its error is a thousandth.
    """
    dtype = torch.float64 if batch.embeddings.dtype == torch.float32 else torch.float32

    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(dtype).requires_grad_()

    z, temperature, offset = leaf(batch.embeddings), leaf(batch.temperature), leaf(batch.offset)
    unit = F.normalize(z, dim=1) if batch.normalize else z
    rows, m = leaf(unit), len(z)
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
        out = torch.zeros_like(same)
        if batch.domain_mask is not None:
            out = ~batch.domain_mask.to(z.device)[batch.domain_ids[panel]][:, batch.domain_ids]
        nu = s.masked_fill(same | out, -torch.inf).logsumexp(1)
        positive &= ~out
        row, column = positive.nonzero(as_tuple=True)
        each = F.softplus(nu[row] - s[row, column], threshold=50) / positive.sum(1)[row]
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
