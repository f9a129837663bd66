"""UniCLIP's objective and two simpler ones to compare it with: MP-NCE over more or fewer pairs of domains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup

from uniclip_kernels import MPNCELoss

IMAGE, TEXT, SIMCLR = 0, 1, 2


@dataclass(frozen=True)
class Objective:
    """Which embeddings of a sample there are in a batch, and which of them are compared.

    domains     the name of each domain
    image_rows  (view, domain) of each image embedding; each image domain has a head of its own
    text_rows   how many texts of a sample take part
    pairs       the pairs of domains that are compared
    aware       whether the image heads are told the augmentation
    """

    domains: tuple[str, ...]
    image_rows: tuple[tuple[int, int], ...]
    text_rows: int
    pairs: tuple[tuple[int, int], ...]
    aware: bool

    @property
    def image_views(self) -> int:
        return 1 + max(view for view, _ in self.image_rows)

    @property
    def row_domains(self) -> list[int]:
        """The domain of each row of a sample, images first."""
        return [domain for _, domain in self.image_rows] + [TEXT] * self.text_rows

    def loss(self, backend: str | None, group: ProcessGroup | None = None) -> MPNCELoss:
        """The loss with a learnable temperature and offset for each pair of domains."""
        mask = torch.zeros(len(self.domains), len(self.domains), dtype=torch.bool)
        for first, second in self.pairs:
            mask[first, second] = mask[second, first] = True
        mask = None if mask.all() else mask
        return MPNCELoss(len(self.domains), domain_mask=mask, process_group=group, backend=backend)


OBJECTIVES = {
    # Everything is compared with everything: two views and two texts of a sample are all positives of each other.
    "uniclip": Objective(
        domains=("image", "text"),
        image_rows=((0, IMAGE), (1, IMAGE)),
        text_rows=2,
        pairs=((IMAGE, IMAGE), (IMAGE, TEXT), (TEXT, TEXT)),
        aware=True,
    ),
    # One picture and one text; only picture and text are compared. This is the loss of CLIP.
    "clip": Objective(
        domains=("image", "text"), image_rows=((0, IMAGE),), text_rows=1, pairs=((IMAGE, TEXT),), aware=False
    ),
    # CLIP beside SimCLR: two views meet in a space of their own behind a second head.
    "simclr+clip": Objective(
        domains=("image", "text", "SimCLR"),
        image_rows=((0, IMAGE), (0, SIMCLR), (1, SIMCLR)),
        text_rows=1,
        pairs=((IMAGE, TEXT), (SIMCLR, SIMCLR)),
        aware=False,
    ),
}
