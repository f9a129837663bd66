"""Rung 0: the executable specification against loops over the definitions, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import brute_force
from tests.cases import CASES
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import reference


@pytest.mark.parametrize(("reduction", "normalize"), [("mean", True), ("sum", False), ("none", True)])
def test_gradients_of_the_oracle_by_differences(reduction, normalize):
    rng = np.random.default_rng(0)
    z, ids, domains = rng.normal(size=(9, 3)), [0, 0, 1, 1, 0, -1, 2, 1, 3], [0, 1, 0, 1, 1, 0, 0, 0, 1]
    weight, mask = rng.uniform(-1, 2, (2, 2)), np.array([[True, True], [True, False]])
    inputs = {
        "grad_embeddings": z,
        "grad_temperature": rng.uniform(0.3, 1, (2, 2)),
        "grad_offset": rng.normal(size=(2, 2)),
    }
    upstream = rng.normal(size=9) if reduction == "none" else -1.7

    def answer() -> brute_force.Answer:
        z, tau, b = inputs.values()
        return brute_force.mp_nce(z, ids, domains, tau, b, weight, mask, reduction, normalize, upstream)

    exact, step = answer(), 1e-5
    for name, x in inputs.items():
        differences = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            for sign in (1, -1):
                x[index] += sign * step
                differences[index] += sign * (upstream * answer().loss.value).sum() / (2 * step)
                x[index] -= sign * step
        np.testing.assert_allclose(getattr(exact, name).value, differences, rtol=1e-7, atol=1e-8)


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
