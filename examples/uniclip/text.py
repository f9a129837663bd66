"""Texts as bags of hashed features: words, word pairs and character n-grams."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKETS = 2**15  # rows of the embedding table; features that share one by chance do little harm
HIDDEN_ID = BUCKETS  # stands for a feature that is not shown
HIDDEN = 0.3  # share of a text's features that it is trained without, so that none of them decides alone
_WORD = re.compile(r"\w+")


def features(text: str) -> list[int]:
    """Feature ids of a text, in [0, BUCKETS).

    Words say what is there and pairs of neighbours keep some of their order ("light skin", "skin dark"); the 3- to
    5-grams of a word let an unseen one borrow from those it resembles; a capital tells names from things.
    """
    words = _WORD.findall(text)
    keys = ["capital"] * sum(word[0].isupper() for word in words)
    words = [word.lower() for word in words]
    keys += [f"word {word}" for word in words]
    keys += [f"pair {first} {second}" for first, second in pairwise(words)]
    for word in words:
        framed = f"<{word}>"
        keys += [f"part {framed[i : i + n]}" for n in (3, 4, 5) for i in range(len(framed) - n + 1)]
    return [crc32(key.encode()) % BUCKETS for key in keys or [""]]


class Bags(NamedTuple):
    """The features of texts in one flat tensor, as ``torch.nn.EmbeddingBag`` takes them with ``include_last_offset``.

    ids     (F,) int64
    starts  (T + 1,) int64; those of text t are ids[starts[t] : starts[t + 1]]
    """

    ids: Tensor
    starts: Tensor

    def take(self, rows: Tensor) -> Bags:
        """The texts in ``rows``."""
        lengths = self.starts.diff()[rows]
        starts = F.pad(lengths.cumsum(0), (1, 0))
        places = torch.arange(len(lengths)).repeat_interleave(lengths)
        return Bags(self.ids[torch.arange(len(places)) + (self.starts[rows] - starts[:-1])[places]], starts)

    def with_some_hidden(self) -> Bags:
        """Each feature hidden or not by torch's global generator."""
        return Bags(self.ids.masked_fill(torch.rand(self.ids.shape) < HIDDEN, HIDDEN_ID), self.starts)

    def to(self, device: torch.device) -> Bags:
        return Bags(self.ids.to(device), self.starts.to(device))


class TextTable:
    """The features of many texts; ``texts`` is a list for each sample."""

    def __init__(self, texts: list[list[str]]) -> None:
        bags = [features(text) for of_sample in texts for text in of_sample]
        starts = torch.tensor([0] + [len(bag) for bag in bags]).cumsum(0)
        self.bags = Bags(torch.tensor([i for bag in bags for i in bag]), starts)
        self.counts = torch.tensor([len(of_sample) for of_sample in texts])
        self.first = self.counts.cumsum(0) - self.counts

    def draw(self, samples: Tensor, among: Tensor | None = None) -> Tensor:
        """(B,) rows of the table: for each of the (B,) samples one of its texts at random.

        ``among`` (N,): how many of a sample's texts, from the first, to choose from; all if None.
        """
        counts = self.counts if among is None else among
        return self.first[samples] + (torch.rand(len(samples)) * counts[samples]).long()
