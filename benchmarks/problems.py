"""The inputs that all competitors of an objective share."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from uniclip_kernels import stack_views

#: Domains of the views of a sample, and rows of a queue beside each.
VIEWS = {"MP-NCE": (0, 0, 1), "InfoNCE": (0, 1), "NT-Xent": (0, 0), "SupCon": (0, 0, 0), "Queue": (0,)}
QUEUED = 16
#: A queue of 65536 rows is the largest that makes sense; the others show nothing beyond that MP-NCE does not.
MOST_SAMPLES = {"NT-Xent": 4096, "SupCon": 4096, "Queue": 4096}


@dataclass(frozen=True)
class Batch:
    """N samples seen as V views: M = V·N rows, view after view, with K = 2 domains.

    MP-NCE: two augmented images and a text, as UniCLIP trains, with learnable temperature and offset.
    InfoNCE: an image and a text, unit rows as CLIP's loss wants them, and a constant temperature of 0.07.
    NT-Xent: two augmented images, as SimCLR trains, each compared with all others; temperature as InfoNCE.
    SupCon: three rows of each class, otherwise as NT-Xent.
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
    views: tuple[int, ...]  # their domains
    queue: Tensor | None = None  # (16 N, D), constant

    @property
    def tau(self) -> Tensor:
        """The temperature where there is one alone: between the first view and the last."""
        return self.temperature[self.views[0], self.views[-1]]

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
    return {"InfoNCE": 8 * n * n, "Queue": 6 * n * QUEUED * n}.get(objective, 4 * m * m) * d


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
def make_batch(
    objective: str, n: int, d: int, dtype: torch.dtype, device: str = "cpu", domains: tuple[int, ...] | None = None
) -> Batch:
    """Always the same one. Views of a sample lie near each other (cos about 0.5), as in a model half trained.

    ``domains``: those of the views, where they are not the objective's own.
    """
    domains = domains or VIEWS[objective]
    generator = torch.Generator().manual_seed(n)
    centre = torch.randn(n, d, generator=generator)
    views = [centre + torch.randn(n, d, generator=generator) for _ in domains]
    across, learnable, queue = objective in ("InfoNCE", "Queue"), objective == "MP-NCE", None
    if objective == "Queue":
        older = torch.randn((QUEUED - 1) * n, d, generator=generator)
        queue = F.normalize(torch.cat([older, views[0].flip(0)]), dim=1).to(device, dtype)
        views = [centre]
    if across:
        views = [F.normalize(view, dim=1) for view in views]
    # On the device, as in a trainer: so the host knows how many rows each domain has.
    embeddings, sample_ids, domain_ids = stack_views([view.to(device, dtype) for view in views], domains)
    if learnable:
        temperature, offset = torch.tensor([[0.07, 0.06], [0.06, 0.08]]), torch.tensor([[0.1, 0.0], [0.0, 0.05]])
    else:
        temperature, offset = torch.full((2, 2), 0.07), torch.zeros(2, 2)
    return Batch(
        objective,
        embeddings.requires_grad_(),
        sample_ids,
        domain_ids,
        temperature.to(device).requires_grad_(learnable),
        offset.to(device).requires_grad_(learnable),
        ~torch.eye(2, dtype=torch.bool) if across else None,
        normalize=not across,
        views=domains,
        queue=queue,
    )


def loss_and_gradients(loss: Tensor, batch: Batch) -> list[Tensor]:
    """Without those of leaves that the loss takes for constants."""
    grads = torch.autograd.grad(loss, batch.leaves, allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]
