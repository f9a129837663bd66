"""pytorch-metric-learning's ``NTXentLoss`` and ``SupConLoss``, and UniCLIP's loss beside them, in memory linear in the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import losses, reducers
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.reducers.per_anchor_reducer import aggregation_func as _PER_ANCHOR
from torch import Tensor

from ..functional import mp_nce, sup_con

_APART = torch.tensor([[False, True], [True, False]])  # rows are compared with references alone


class _Loss(losses.BaseMetricLossFunction):
    """
    Args:
        temperature: what cosines are divided by.
        kwargs: those of ``BaseMetricLossFunction``: reducer, embedding_regularizer and so on.

    It is called as theirs are, ``(embeddings, labels, indices_tuple, ref_emb, ref_labels)``, also by ``CrossBatchMemory`` and
    ``SelfSupervisedLoss``; float32 (float64 for float64).

    Raises:
        ValueError: for a distance that is not the cosine, for no labels, and for pairs that a miner has chosen.
    """

    _objective: Callable[..., Tensor]

    def __init__(self, temperature: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if type(self.distance) is not CosineSimilarity or (self.distance.p, self.distance.power) != (2, 1):
            raise ValueError(f"distance must be CosineSimilarity(), got {self.distance}")
        self.temperature = temperature
        self.add_to_recordable_attributes(list_of_names=["temperature"], is_stat=False)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        if labels is None or ref_labels is None:
            raise ValueError("labels must be given, and ref_labels with ref_emb, got None")
        m, rows = len(labels), torch.arange(len(labels), device=embeddings.device)
        ids = torch.cat([labels, ref_labels]).unique(return_inverse=True)[1]
        ids, ref_ids = ids[:m], ids[m:]
        same = ref_ids.bincount(minlength=m + len(ref_ids))[ids]
        if indices_tuple is not None:
            left_out = _left_out(indices_tuple, ids, ref_ids, same)
        else:
            left_out = rows if ref_labels is labels else None
        positives = same if left_out is None else same - 1
        if not positives.any() or (same == len(ref_ids)).all():
            return self.zero_losses()
        if ref_emb is embeddings and left_out is not None and torch.equal(left_out, rows):
            loss = self._objective(embeddings, ids, temperature=self.temperature, reduction="none")
        else:
            loss = self._with_references(embeddings, ids, ref_emb, ref_ids, left_out, positives)
        return {"loss": self._reducible(loss, positives)}

    def _with_references(
        self, z: Tensor, ids: Tensor, ref: Tensor, ref_ids: Tensor, left_out: Tensor | None, positives: Tensor
    ) -> Tensor:
        options = dict(temperature=self.temperature, domain_mask=_APART, reduction="none")
        options |= dict(candidates=ref, candidate_domain_ids=torch.ones_like(ref_ids))
        loss = self._objective(z, ids, candidate_sample_ids=ref_ids, **options)
        if left_out is None:
            return loss
        # The loss has one positive too many. MP-NCE of that one alone, against the negatives, is what it added to the sum; for
        # SupCon, against all others, it is log(1 + exp(λ - s)), where λ is right and log(exp(λ) + exp(s)) was in its place.
        rows, n = torch.arange(len(z), device=z.device), positives.clamp(min=1)
        single = (torch.arange(len(ref), device=z.device) + len(z)).index_copy(0, left_out, rows)
        excluded = dict(exclude_ids=ids, candidate_exclude_ids=ref_ids) if self._objective is mp_nce else {}
        surplus = mp_nce(z, rows, candidate_sample_ids=single, **excluded, **options)
        loss = loss + (loss - surplus) / n
        if self._objective is sup_con:
            if self.temperature < 2 / 87:  # exp(λ - s) might be 0 in float32
                raise ValueError(f"temperature must be at least 0.023 in CrossBatchMemory, got {self.temperature}")
            loss = loss + (-(-surplus).expm1()).log()
        return loss * (positives > 0)

    def _reducible(self, loss: Tensor, positives: Tensor) -> dict[str, Any]:
        """The loss of each row, for a reducer."""
        return {"losses": loss, "indices": torch.arange(len(loss), device=loss.device), "reduction_type": "element"}


class SupConLoss(_Loss):
    __doc__ = f"""``pytorch_metric_learning.losses.SupConLoss``, with any reducer.
    {_Loss.__doc__}"""
    _objective = staticmethod(sup_con)

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def get_default_reducer(self) -> reducers.BaseReducer:
        return reducers.AvgNonZeroReducer()


class NTXentLoss(_Loss):
    __doc__ = f"""``pytorch_metric_learning.losses.NTXentLoss``: a mean over pairs with ``MeanReducer``, over those of the anchors
    that have a loss with ``AvgNonZeroReducer``, over anchors with ``PerAnchorReducer``. Others, which need
    the loss of each pair, are a ValueError.
    {_Loss.__doc__}"""
    _objective = staticmethod(mp_nce)

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def set_reducer(self, reducer: reducers.BaseReducer | None) -> None:
        super().set_reducer(reducer)
        found = self._reducer_of_loss()
        known = (reducers.MeanReducer, reducers.AvgNonZeroReducer, reducers.PerAnchorReducer)
        if type(found) not in known or getattr(found, "aggregation_func", _PER_ANCHOR) is not _PER_ANCHOR:
            raise ValueError(f"reducer must be {', '.join(c.__name__ for c in known)}, as they come, got {found}")

    def _reducer_of_loss(self) -> reducers.BaseReducer:
        if not isinstance(self.reducer, reducers.MultipleReducers):
            return self.reducer
        return getattr(self.reducer.reducers, "loss", self.reducer.default_reducer)

    def _reducible(self, loss: Tensor, positives: Tensor) -> dict[str, Any]:
        reducer = self._reducer_of_loss()
        if isinstance(reducer, reducers.PerAnchorReducer):
            return super()._reducible(loss, positives)
        pairs = positives * (loss > 0) if isinstance(reducer, reducers.AvgNonZeroReducer) else positives
        mean = (loss * pairs).sum() / pairs.sum().clamp(min=1)
        return {"losses": mean, "indices": None, "reduction_type": "already_reduced"}


class MPNCELoss(_Loss):
    __doc__ = f"""UniCLIP's loss, over the anchors that have a positive, with any reducer. The wrappers, which go by names, don't
    know it: in them, ``NTXentLoss(reducer=PerAnchorReducer())`` is the mean over all anchors.
    {_Loss.__doc__}"""
    _objective = staticmethod(mp_nce)

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def _reducible(self, loss: Tensor, positives: Tensor) -> dict[str, Any]:
        anchors = positives.nonzero().flatten()
        return {"losses": loss[anchors], "indices": anchors, "reduction_type": "element"}


def _left_out(indices: tuple[Tensor, ...], ids: Tensor, ref_ids: Tensor, same: Tensor) -> Tensor | None:
    """(M,) the one reference that pairs leave out of each row's positives, as ``CrossBatchMemory`` does with the row's own copy;
    None if there are all pairs."""
    if len(indices) == 4:
        anchors, others, of_negatives, _ = indices
        pairs, negatives = (x.bincount(minlength=len(ids)) for x in (anchors, of_negatives))
        if torch.equal(negatives, len(ref_ids) - same):
            if torch.equal(pairs, same):
                return None
            if torch.equal(pairs, same - 1):
                places = torch.arange(len(ref_ids), device=ids.device)
                wanted = same.new_zeros(len(ids) + len(ref_ids)).index_add(0, ref_ids, places)[ids]
                return wanted - torch.zeros_like(ids).index_add(0, anchors, others)
    raise ValueError(
        "indices_tuple must be None or what CrossBatchMemory makes without a miner: pairs are not chosen here"
    )
