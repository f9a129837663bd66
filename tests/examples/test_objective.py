"""The objectives to compare with are what they are called, and recall is counted right."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from uniclip import retrieval, samples
from uniclip.objective import OBJECTIVES

from uniclip_kernels import stack_views


def rows(objective, n: int = 7) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [F.normalize(torch.randn(n, 16), dim=1) for _ in objective.row_domains]


def cross_entropy_both_ways(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits, target = x @ y.T / 0.07, torch.arange(len(x))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def nt_xent(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = torch.cat([x, y])
    logits = (z @ z.T / 0.07).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(x)))


def objective_loss(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    objective = OBJECTIVES[name]
    views = rows(objective)
    return objective.loss(None)(*stack_views(views, objective.row_domains)).detach(), views


def test_clip_is_the_loss_of_clip():
    loss, (image, caption) = objective_loss("clip")
    torch.testing.assert_close(loss, cross_entropy_both_ways(image, caption))


def test_simclr_clip_is_the_mean_of_both():
    loss, (image, first, second, caption) = objective_loss("simclr+clip")
    torch.testing.assert_close(loss, (cross_entropy_both_ways(image, caption) + nt_xent(first, second)) / 2)


def test_recall_by_hand():
    # Pictures 0, 1, 2; texts "a" (of 0), "b" (of 0 and 1), "c" (of 2).
    held_out = retrieval.HeldOut.of(
        samples.Samples(torch.zeros(3, 3, 2, 2), [["a", "b"], ["b"], ["c"]], [[], [], []]),
    )
    assert held_out.captions == ["a", "b", "c"]
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.7], [0.6, 0.5, 0.4]])
    measured = retrieval.recalls(similarity, held_out.right)
    # a finds 0, b finds 1, c finds 2 third; picture 0 finds a, 1 finds b, 2 finds c second (b is nearer).
    assert measured["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert measured["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert measured["text_to_image_recall@5"] == measured["image_to_text_recall@5"] == 1


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_recall_of_a_collapsed_model_is_zero(value):
    measured = retrieval.recalls(torch.full((20, 20), value), torch.eye(20, dtype=torch.bool))
    assert set(measured.values()) == {0.0}
