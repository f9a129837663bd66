"""The code in the documentation runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import uniclip_kernels
from tests.ranks import ranks

DOCS = Path(__file__).parents[1] / "docs"
SNIPPETS = re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", (DOCS / "losses.md").read_text(), re.DOTALL)
OF_RANKS = re.findall(r"```python\n(.*?)```", (DOCS / "ranks.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("code", [code for _, code in SNIPPETS], ids=[title for title, _ in SNIPPETS])
def test_recipe(code):
    model = nn.Linear(6, 4)
    rows = {name: torch.randn(5, 4, requires_grad=True) for name in ("queries", "positives", "hard_negatives")}
    names = {"torch": torch, "D": 4, "model": model, "momentum_model": nn.Linear(6, 4)} | rows
    names["loader"] = [(torch.randn(5, 6), torch.randn(5, 6)) for _ in range(3)]
    names["labelled"] = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(3)]
    exec(code, vars(uniclip_kernels) | names)
    assert len(SNIPPETS) == 3
    assert model.weight.grad is not None or all(z.grad.count_nonzero() for z in rows.values())


def _run_of_ranks() -> float:
    rank = torch.distributed.get_rank()
    image, text = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    names = {"torch": torch, "rank": rank, "image": image, "text": text}
    exec(OF_RANKS[0], vars(uniclip_kernels) | names)
    assert image.grad.count_nonzero() > 0
    model = nn.Linear(6, 4)
    more = {"model": model, "images": torch.randn(20, 6), "labels": torch.arange(20) % 3}
    exec(OF_RANKS[1], vars(uniclip_kernels) | names | more)
    return model.weight.grad.abs().sum().item()


def test_the_recipes_of_ranks():
    assert len(OF_RANKS) == 2
    with ranks(2) as run:
        assert all(result > 0 for result in run(_run_of_ranks))
