"""Rung 0: the executable specification against loops over the definitions, in float64."""

from pathlib import Path

import pytest
import torch

from tests.cases import CASES
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import reference


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_reference_on_the_grid(case):
    assert_matches(evaluate(case, "reference", torch.float64), case, torch.float64)


def test_a_case_by_hand():
    """Two samples of two rows, cosines 1, 0 and -1, τ = 1/2: ν = log(e^0 + e^-2), or log(2 e^0) for the last row."""
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], dtype=torch.float64)
    e = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64).exp()
    with_opposite = (e[1] + e[0]).log() - 2  # rows 0 and 1: positive at s = 2, negatives at 0 and -2
    third = (e[1] + e[1]).log()  # row 2: positive (row 3) at 0, negatives at 0 and 0
    fourth = (e[0] + e[0]).log()  # row 3: positive at 0, negatives at -2 and -2
    expected = torch.stack([with_opposite, with_opposite, third, fourth]).exp().log1p()
    loss = reference.mp_nce(z, torch.tensor([5, 5, 9, 9]), temperature=0.5, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


def test_it_is_short():
    assert len(Path(reference.__file__).read_text().splitlines()) < 150
