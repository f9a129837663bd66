"""What is compared with what: UniCLIP's objective, the losses that it is compared with, and the domains of pictures and texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from uniclip_kernels import MILNCELoss, MPNCELoss, SupConLoss

from .emojis import ARTISTS, LANGUAGES

VIEWS, TEXTS = 2, 2  # of a sample in a batch, whatever the objective, so that all encode as much
# Which two of two views and two texts belong together, where each has one positive: all ways there are.
_PAIRINGS = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]])
_ALIGNED = 1  # of these, view and text of one number


@dataclass(frozen=True)
class Domains:
    """Which of a sample's pictures each view is of, and in which domain. After those come texts, or each of their languages."""

    names: tuple[str, ...]
    pictures: tuple[int, ...] = (0, 0)
    of_views: tuple[int, ...] = (0, 0)
    by_language: bool = False

    @property
    def text(self) -> int:
        """The first domain of texts."""
        return 1 + max(self.of_views)


DOMAINS = {
    "picture": Domains(("image", "text")),
    "pictures": Domains(("image", "text"), pictures=(0, 1)),
    "artists": Domains((*ARTISTS, "text"), pictures=(0, 1), of_views=(0, 1)),
    "languages": Domains((*ARTISTS, "en", *LANGUAGES), pictures=(0, 1), of_views=(0, 1), by_language=True),
}


@dataclass(frozen=True)
class Objective:
    """What the rows of a batch are, and what they are trained to.

    loss         how the positives of a row count
    positives    "all": the other view and texts of its sample; "drawn": one of them, drawn for each sample and step;
                 "aligned": of the i-th view the i-th text
    one_space    all rows are compared; else pictures with texts alone
    simclr       the two views meet in a space of their own too, behind a second head
    aware        image heads are told the augmentation
    similarity   "shared": one temperature; "temperature": one for each pair of domains; "offset": and an offset
    temperature  at the beginning
    weight       of positives of the anchor's own kind, picture or text
    """

    loss: type[nn.Module] = MPNCELoss
    positives: str = "all"
    one_space: bool = True
    simclr: bool = False
    aware: bool = True
    similarity: str = "offset"
    temperature: float = 0.07
    weight: float = 1.0
    sources: Domains = DOMAINS["picture"]

    @property
    def domains(self) -> tuple[str, ...]:
        """The name of each domain."""
        if self.similarity == "shared":
            return ("all",)
        return (*self.sources.names, "SimCLR") if self.simclr else self.sources.names

    @property
    def image_rows(self) -> tuple[tuple[int, str], ...]:
        """The view and the head of each image embedding of a sample. Its texts follow."""
        heads = ("image", "SimCLR") if self.simclr else ("image",)
        return tuple((view, head) for head in heads for view in range(VIEWS))

    @property
    def rows(self) -> int:
        """Embeddings of a sample."""
        return len(self.image_rows) + TEXTS

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of domains that are compared, lower number first."""
        k, text = len(self.domains), self.sources.text
        if self.one_space:
            return [(e, f) for e in range(k) for f in range(e, k)]
        across = [(e, f) for e in range(text) for f in range(text, len(self.sources.names))]
        return [*across, (k - 1, k - 1)] if self.simclr else across

    def criterion(self, backend: str | None, group: ProcessGroup | None = None) -> nn.Module:
        """The loss, with a learnable temperature and offset for each pair of domains."""
        k, text = len(self.domains), self.sources.text
        options = {}
        if not self.one_space:
            mask = torch.zeros(k, k, dtype=torch.bool)
            for first, second in self.pairs:
                mask[first, second] = mask[second, first] = True
            options["domain_mask"] = mask
        if self.weight != 1:
            is_text = torch.arange(k) >= text
            options["weight"] = torch.where(is_text[:, None] == is_text, self.weight, 1.0)
        loss = self.loss(k, temperature=self.temperature, process_group=group, backend=backend, **options)
        if self.similarity == "temperature":
            loss.offset.requires_grad_(False)
        return loss

    def domain_ids(self, languages: Tensor) -> Tensor:
        """(rows, B) domains, for (TEXTS, B) languages of the texts, from 0."""
        if self.similarity == "shared":
            return torch.zeros(self.rows, languages.shape[1], dtype=torch.long)
        if not self.sources.by_language:
            languages = torch.zeros_like(languages)
        views = [*self.sources.of_views, *[len(self.domains) - 1] * (len(self.image_rows) - VIEWS)]
        pictures = torch.tensor(views)[:, None].expand(-1, languages.shape[1])
        return torch.cat([pictures, self.sources.text + languages])

    def pairings(self, count: int) -> Tensor | None:
        """(rows, count) 0 or 1: which rows of a sample are positives of each other; None if all are."""
        if self.positives == "all":
            return None
        chosen = torch.full((count,), _ALIGNED) if self.positives == "aligned" else torch.randint(3, (count,))
        of_rows = _PAIRINGS[chosen].T
        meet = of_rows.new_zeros(len(self.image_rows) - VIEWS, count)
        return torch.cat([of_rows[:VIEWS], meet, of_rows[VIEWS:]])

    def anchor_weight(self, count: int, device: torch.device) -> Tensor | None:
        """(rows * count,): the two views of SimCLR are to count as much as views and texts together."""
        if not self.simclr:
            return None
        weights = torch.ones(self.rows, device=device)
        weights[VIEWS : len(self.image_rows)] = (VIEWS + TEXTS) / VIEWS
        return weights.repeat_interleave(count)


OBJECTIVES = {
    "uniclip": Objective(),
    "mp-nce": Objective(aware=False),
    "supcon": Objective(SupConLoss),
    "mil-nce": Objective(MILNCELoss),
    "infonce": Objective(positives="drawn"),
    "clip": Objective(positives="aligned", one_space=False, aware=False),
    "simclr+clip": Objective(positives="aligned", one_space=False, simclr=True, aware=False),
}
