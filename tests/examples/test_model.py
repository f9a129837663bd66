"""The image heads are told the augmentation where the objective says so, and each embedding comes from its own rows."""

from __future__ import annotations

import pytest
import torch
from uniclip import augment
from uniclip.model import UniCLIP
from uniclip.objective import OBJECTIVES, TEXTS, VIEWS
from uniclip.text import HIDDEN_ID, Bags, TextTable

N = 4


def model_and_inputs(name: str) -> tuple[UniCLIP, tuple]:
    objective = OBJECTIVES[name]
    model = UniCLIP(objective, 32, 16)
    images = torch.randint(0, 256, (N, 3, 64, 64), dtype=torch.uint8)
    vectors = [augment.draw(N) for _ in range(VIEWS)]
    views = [augment.apply(images, vector, model.image_size) for vector in vectors]
    table = TextTable([[f"text {i}"] for i in range(N * TEXTS)])
    return model, (views, vectors, table.bags)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_are_those_of_the_encoders_alone(name):
    model, (views, vectors, texts) = model_and_inputs(name)
    rows = model(views, vectors, texts)
    assert [row.shape for row in rows] == [(N, model.embedding)] * OBJECTIVES[name].rows
    torch.testing.assert_close(rows[0], model.encode_image(views[0], vectors[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(rows[-TEXTS:]), model.encode_text(texts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_heads_are_told_the_augmentation(name):
    model, (views, vectors, _) = model_and_inputs(name)
    told = model.encode_image(views[0], vectors[0])
    untold = model.encode_image(views[0], augment.identity(N))
    assert torch.equal(told, untold) == (name in ("clip", "simclr+clip", "mp-nce"))


def test_hidden_features_have_no_part():
    text = UniCLIP(OBJECTIVES["clip"], 32, 16).text
    copies = Bags(torch.full((1000,), 5), torch.arange(1001))  # a thousand texts of one feature, the same
    shown = text(copies)
    alike = torch.isclose(text(copies.with_some_hidden()), shown[:1], atol=1e-6).all(1)
    assert 0.65 < alike.float().mean() < 0.75
    pair = Bags(torch.tensor([5, HIDDEN_ID]), torch.tensor([0, 2]))
    torch.testing.assert_close(text(pair), shown[:1])
