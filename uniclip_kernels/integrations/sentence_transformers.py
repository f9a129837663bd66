"""``MultipleNegativesRankingLoss`` of sentence-transformers (6.2 or newer), cached or not, in memory linear in the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor

from ..functional import mp_nce

_EXTRA_DIRECTIONS = [({"query_to_query"}, "joint"), ({"doc_to_query"}, "per_direction")]


class _Loss:
    """
    Args:
        args, kwargs: those of the original.
        exclude_duplicates: True makes samples that share a text, as query or as positive, no negatives of each other, nor hard
            negatives that have such a text. Texts are equal if their tokens are; of the own rank alone.

    Raises:
        ValueError: for a ``similarity_fct`` other than ``cos_sim`` and ``dot_score``; for ``hardness_mode``; for ``directions``
            other than query_to_doc, that and query_to_query, or with ``partition_mode="per_direction"`` that and doc_to_query;
            for ``exclude_duplicates`` with ``gather_across_devices``.
    """

    def __init__(self, *args: Any, exclude_duplicates: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exclude_duplicates = exclude_duplicates
        self._options()

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        features = list(sentence_features)
        # The originals hand labels on and do not use them: exclusions travel in their place.
        return super().forward(features, _exclusions(features) if self.exclude_duplicates else None)

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"exclude_duplicates": self.exclude_duplicates}

    def _loss(self, embeddings: list[Tensor], exclusions: Tensor | None) -> Tensor:
        """Of (N, D) queries, positives, and hard negatives in any number of columns: domains 0, 1 and 2."""
        n, rows = len(embeddings[0]), torch.cat(embeddings)
        place = torch.arange(len(rows), device=rows.device)
        sample_ids, group = place.where(place < n, place - n), None
        if self.gather_across_devices and dist.is_initialized():
            sample_ids, group = sample_ids + (dist.get_rank() << 32), dist.group.WORLD
        return mp_nce(
            rows,
            sample_ids,
            (place // max(n, 1)).clamp(max=2),
            exclude_ids=exclusions,
            anchor_weight=None if "doc_to_query" in self.directions else (place < n).float(),
            process_group=group,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        extra = set(self.directions) - {"query_to_doc"}
        if self.similarity_fct not in (cos_sim, dot_score):
            raise ValueError(f"similarity_fct must be cos_sim or dot_score, got {self.similarity_fct}")
        if extra and (extra, self.partition_mode) not in _EXTRA_DIRECTIONS:
            raise ValueError(
                f"directions must be query_to_doc, with query_to_query, or with doc_to_query and "
                f"partition_mode='per_direction', got {self.directions} and {self.partition_mode!r}"
            )
        if self.hardness_mode is not None and self.hardness_strength > 0:
            raise ValueError(f"hardness_mode must be None, got {self.hardness_mode!r}")
        if self.exclude_duplicates and self.gather_across_devices:
            raise ValueError(
                "exclude_duplicates must be False with gather_across_devices: it sees the texts of one rank"
            )
        met = "query_to_query" in extra
        mask = torch.tensor([[met, True, True], [True, False, False], [True, False, False]])
        return dict(temperature=1 / self.scale, domain_mask=mask, normalize=self.similarity_fct is cos_sim)


class MultipleNegativesRankingLoss(_Loss, losses.MultipleNegativesRankingLoss):
    __doc__ = f"""``sentence_transformers.losses.MultipleNegativesRankingLoss``.
    {_Loss.__doc__}"""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        return self._loss(embeddings, exclusions=labels)


class CachedMultipleNegativesRankingLoss(_Loss, losses.CachedMultipleNegativesRankingLoss):
    __doc__ = f"""``sentence_transformers.losses.CachedMultipleNegativesRankingLoss``.
    {_Loss.__doc__}"""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        loss = self._loss([torch.cat(chunks) for chunks in reps], exclusions=labels)
        if with_backward:
            loss.backward()
        return loss.detach() if with_backward else loss


def _exclusions(columns: list[dict[str, Tensor]]) -> Tensor:
    """An exclusion id for each text of queries, positives and hard negatives: the first of the samples that texts link."""
    if not all(f.get("input_ids", torch.empty(0)).ndim == 2 and "attention_mask" in f for f in columns):
        raise ValueError("exclude_duplicates needs input_ids and attention_mask, (N, tokens) each, in all features")
    width = max(f["input_ids"].shape[1] for f in columns)
    texts = []
    for features in columns:
        mask = features["attention_mask"] != 0
        tokens = features["input_ids"].masked_fill(~mask, -1)
        tokens = tokens.gather(1, (~mask).long().argsort(dim=1, stable=True))  # padding goes to the right
        texts.append(F.pad(tokens, (0, width - tokens.shape[1]), value=-1))
    n, text = len(texts[0]), torch.cat(texts).unique(dim=0, return_inverse=True)[1]
    linked, sample = text[: 2 * n].view(2, n), torch.arange(n, device=text.device)
    while True:
        first = torch.full_like(text, n).scatter_reduce(0, linked.flatten(), sample.repeat(2), "amin")
        found = first[linked].amin(0)
        if torch.equal(found, sample):
            return first.masked_fill(first == n, -1)[text]
        sample = found
