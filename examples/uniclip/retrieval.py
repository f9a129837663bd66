"""Embedding held-out samples and counting how often the right one comes first."""

from __future__ import annotations

import math
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
        return cls(samples, list(row), right)


@torch.no_grad()
def embed_pictures(model: UniCLIP, images: Tensor) -> Tensor:
    """(N, D) unit rows, on the CPU, of (N, 3, S, S) pictures as they are."""
    device = next(model.parameters()).device
    rows = []
    for some in images.split(CHUNK):
        nothing = augment.identity(len(some), device)
        rows.append(model.encode_image(augment.apply(some.to(device), nothing, model.image_size), nothing))
    return F.normalize(torch.cat(rows), dim=1).cpu()


@torch.no_grad()
def embed_texts(model: UniCLIP, texts: list[str]) -> Tensor:
    """(T, D) unit rows, on the CPU."""
    device, bags = next(model.parameters()).device, TextTable([texts]).bags
    rows = [model.encode_text(bags.take(some).to(device)) for some in torch.arange(len(texts)).split(CHUNK)]
    return F.normalize(torch.cat(rows), dim=1).cpu()


def similarities(model: UniCLIP, held_out: HeldOut) -> Tensor:
    """(T, N) cosines of captions and pictures, the first of each sample, on the CPU.

    The learned temperature and offset are the same for all of them, so they would not change any order.
    """
    return embed_texts(model, held_out.captions) @ embed_pictures(model, held_out.samples.images[:, 0]).T


def ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """(Q,) how many wrong answers each query finds before its first right one, of (Q, A) similarities.

    Of equally near answers the wrong ones count as nearer, so that a model that puts everything in one place finds
    nothing.
    """
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return (~(similarity < best) & ~right).sum(1)  # not (s >= best): a NaN, too, must count as a miss


def recalls(similarity: Tensor, right: Tensor) -> dict[str, float]:
    """Recall@1, @5 and @10, both ways, of a (T, N) similarity with (T, N) bool right answers.

    text_to_image: the share of texts with a right picture among their k nearest pictures. A text that several
    pictures share is asked once, and any of them is right. image_to_text: the share of pictures with any of their
    texts among their k nearest texts.
    """
    result = {}
    for name, s, ok in (("image_to_text", similarity.T, right.T), ("text_to_image", similarity, right)):
        rank = ranks(s, ok)
        result |= {f"{name}_recall@{k}": (rank < k).float().mean().item() for k in RANKS}
    return result


def chance(right: Tensor, k: int) -> float:
    """The recall@k of queries, (Q, A), whose answers come in an order drawn at random."""
    answers = right.shape[1]
    k = min(k, answers)
    none = [math.comb(answers - of_query, k) / math.comb(answers, k) for of_query in right.sum(1).tolist()]
    return 1 - sum(none) / len(none)
