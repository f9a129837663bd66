"""The objectives to compare with are what they are called, domains are what they say, and recall is counted right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from uniclip import retrieval, samples
from uniclip.objective import DOMAINS, OBJECTIVES, TEXTS, Objective

N = 7


def loss_of(objective: Objective) -> tuple[Tensor, list[Tensor]]:
    """And the rows that it is of."""
    torch.manual_seed(0)
    rows = [F.normalize(torch.randn(N, 16), dim=1) for _ in range(objective.rows)]
    samples = torch.arange(N).repeat(objective.rows)
    options = {
        "sample_ids": samples,
        "domain_ids": objective.domain_ids(torch.zeros(TEXTS, N, dtype=torch.long)).flatten(),
    }
    if (pairings := objective.pairings(N)) is not None:
        options |= {"sample_ids": 2 * samples + pairings.flatten(), "exclude_ids": samples}
    weight = objective.anchor_weight(N, torch.device("cpu"))
    return objective.criterion(None)(torch.cat(rows), **options, anchor_weight=weight).detach(), rows


def clip(views: list[Tensor], texts: list[Tensor]) -> Tensor:
    """Cross entropy both ways, where what else is of a sample is no negative of it."""
    x, y = torch.cat(views), torch.cat(texts)
    number, sample = torch.arange(2 * N), torch.arange(N).repeat(2)
    other = (sample[:, None] == sample) & (number[:, None] != number)
    logits = (x @ y.T / 0.07).masked_fill(other, -math.inf)
    return (F.cross_entropy(logits, number) + F.cross_entropy(logits.T, number)) / 2


def nt_xent(x: Tensor, y: Tensor) -> Tensor:
    z = torch.cat([x, y])
    logits = (z @ z.T / 0.07).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(x)))


def test_clip_is_the_loss_of_clip():
    loss, rows = loss_of(OBJECTIVES["clip"])
    torch.testing.assert_close(loss, clip(rows[:2], rows[2:]))


def test_simclr_clip_is_the_mean_of_both():
    loss, rows = loss_of(OBJECTIVES["simclr+clip"])
    torch.testing.assert_close(loss, (clip(rows[:2], rows[4:]) + nt_xent(*rows[2:4])) / 2)


def test_infonce_draws_each_other_row_of_a_sample_as_often():
    torch.manual_seed(0)
    groups = OBJECTIVES["infonce"].pairings(3000)
    assert (groups.sum(0) == 2).all()
    for row in range(1, 4):
        assert (groups[0] == groups[row]).float().mean().item() == pytest.approx(1 / 3, abs=0.03)


def test_weights_are_of_positives_within_a_kind():
    artists = replace(OBJECTIVES["uniclip"], weight=4.0, sources=DOMAINS["artists"])
    assert artists.criterion(None).weight.tolist() == [[4, 4, 1], [4, 4, 1], [1, 1, 4]]


@pytest.mark.parametrize(("similarity", "pairs"), [("shared", 1), ("temperature", 6), ("offset", 6)])
def test_what_of_the_similarity_is_learned(similarity, pairs):
    loss = replace(OBJECTIVES["uniclip"], similarity=similarity, sources=DOMAINS["artists"]).criterion(None)
    assert loss.log_temperature.shape == (pairs,)
    assert loss.offset.requires_grad == (similarity != "temperature")


def test_a_domain_for_each_language():
    languages = torch.tensor([[0, 0], [3, 1]])
    ids = replace(OBJECTIVES["uniclip"], sources=DOMAINS["languages"]).domain_ids(languages)
    assert ids.tolist() == [[0, 0], [1, 1], [2, 2], [5, 3]]
    ids = replace(OBJECTIVES["simclr+clip"], sources=DOMAINS["artists"]).domain_ids(languages)
    assert ids.tolist() == [[0, 0], [1, 1], [3, 3], [3, 3], [2, 2], [2, 2]]


def test_recall_by_hand():
    # Pictures 0, 1, 2; texts "a" (of 0), "b" (of 0 and 1), "c" (of 2).
    images, captions = torch.zeros(3, 1, 3, 2, 2), [["a", "b"], ["b"], ["c"]]
    held_out = retrieval.HeldOut.of(samples.Samples(images, captions, [[], [], []], torch.arange(3), [()] * 3))
    assert held_out.captions == ["a", "b", "c"]
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.7], [0.6, 0.5, 0.4]])
    assert retrieval.ranks(similarity, held_out.right).tolist() == [0, 0, 2]
    measured = retrieval.recalls(similarity, held_out.right)
    # a finds 0, b finds 1, c finds 2 third; picture 0 finds a, 1 finds b, 2 finds c second (b is nearer).
    assert measured["text_to_image_recall@1"] == pytest.approx(2 / 3)
    assert measured["image_to_text_recall@1"] == pytest.approx(2 / 3)
    assert measured["text_to_image_recall@5"] == measured["image_to_text_recall@5"] == 1
    # Of three pictures a, b, c have 1, 2, 1: one drawn at random is right for 1/3, 2/3, 1/3; of two, for 2/3, 1, 2/3.
    assert retrieval.chance(held_out.right, 1) == pytest.approx(4 / 9)
    assert retrieval.chance(held_out.right, 2) == pytest.approx(7 / 9)


@pytest.mark.parametrize("value", [0.5, math.nan])
def test_recall_of_a_collapsed_model_is_zero(value):
    measured = retrieval.recalls(torch.full((20, 20), value), torch.eye(20, dtype=torch.bool))
    assert set(measured.values()) == {0.0}
