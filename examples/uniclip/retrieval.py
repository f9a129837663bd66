"""Embedding held-out samples and counting how often the right one comes first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import augment
from .model import UniCLIP
from .samples import Samples
from .text import TextTable

RANKS = (1, 5, 10)
CHUNK = 1024


@dataclass
class HeldOut:
    """The held-out samples as queries and answers.

    captions  T texts, each once, however many samples share it
    right     (T, N) bool: does text t belong to picture n
    """

    samples: Samples
    captions: list[str]
    table: TextTable
    right: Tensor

    @classmethod
    def of(cls, samples: Samples) -> HeldOut:
        row = {}
        for texts in samples.captions:
            for text in texts:
                row.setdefault(text, len(row))
        right = torch.zeros(len(row), len(samples), dtype=torch.bool)
        for n, texts in enumerate(samples.captions):
            right[[row[text] for text in texts], n] = True
        return cls(samples, list(row), TextTable([[text] for text in row]), right)


@torch.no_grad()
def similarities(model: UniCLIP, held_out: HeldOut) -> Tensor:
    """(T, N) cosines of captions and pictures, on the CPU.

    The learned temperature and offset are the same for all of them, so they would not change any order.
    """
    device = next(model.parameters()).device
    model.eval()
    pictures = []
    for images in held_out.samples.images.split(CHUNK):
        nothing = augment.identity(len(images), device)
        pictures.append(model.encode_image(augment.apply(images.to(device), nothing, model.image_size), nothing))
    texts = [
        model.encode_text(held_out.table.bags.take(rows).to(device))
        for rows in torch.arange(len(held_out.captions)).split(CHUNK)
    ]
    model.train()
    return (F.normalize(torch.cat(texts), dim=1) @ F.normalize(torch.cat(pictures), dim=1).T).cpu()


def recalls(similarity: Tensor, right: Tensor) -> dict[str, float]:
    """Recall@1, @5 and @10, both ways, of a (T, N) similarity with (T, N) bool right answers.

    text_to_image: the share of texts with a right picture among their k nearest pictures. A text that several
    pictures share is asked once, and any of them is right. image_to_text: the share of pictures with any of their
    texts among their k nearest texts. Of equally near answers the wrong ones count as nearer, so that a model that
    puts everything in one place scores 0.
    """
    result = {}
    for name, s, ok in (("image_to_text", similarity.T, right.T), ("text_to_image", similarity, right)):
        best = s.masked_fill(~ok, -torch.inf).amax(1, keepdim=True)
        rank = (~(s < best) & ~ok).sum(1)  # not (s >= best): a NaN, too, must count as a miss
        result |= {f"{name}_recall@{k}": (rank < k).float().mean().item() for k in RANKS}
    return result
