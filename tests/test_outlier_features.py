"""bfloat16 rows in which few features outweigh all others: fixed point would lose these others."""

import numpy as np
import pytest
import torch

from tests.cases import make_case
from tests.evaluate import assert_matches, evaluate, oracle, plain
from uniclip_kernels.cpu import BACKEND


@pytest.fixture(autouse=True)
def _fixed_point(monkeypatch):
    """As on processors that multiply bfloat16 in it."""
    monkeypatch.setattr(BACKEND, "bfloat16_products", torch.int16)


def products(z: torch.Tensor) -> torch.dtype:
    return BACKEND.gather_rows(z, torch.arange(len(z)), True)[0].dtype


@pytest.mark.parametrize("outliers", [1, 2, 4])
def test_gradients_of_the_other_features_are_no_worse_than_those_of_plain_pytorch(outliers):
    def with_outliers(z):
        return torch.cat([1000 * z[:, :outliers], z[:, outliers:]], 1)

    case = make_case(f"outliers-{outliers}", 96, 64, layout=with_outliers)
    ours, exact, theirs = (
        g[:, outliers:]
        for g in (
            evaluate(case, "cpu", torch.bfloat16).grad_embeddings,
            oracle(case, torch.bfloat16).grad_embeddings.value,
            plain(case, torch.bfloat16).grad_embeddings,
        )
    )
    assert np.abs(ours - exact).sum() <= np.abs(theirs - exact).sum()
    assert_matches(evaluate(case, "cpu", torch.bfloat16), case, torch.bfloat16)
    assert products(case.rows(torch.bfloat16)) == torch.float32


@pytest.mark.parametrize("d", [4, 64, 512, 4096])
def test_usual_rows_stay_in_fixed_point(d):
    z = torch.randn(32, d).bfloat16()
    z[3] = 0
    z[4, 1:] = 0
    z[5, 0] = torch.nan
    assert products(z) == torch.int16
