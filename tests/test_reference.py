"""Rung 0: the executable specification against loops over the definitions, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import brute_force, objective_cases
from tests.evaluate import FIELDS, assert_matches, oracle, plain, specification
from uniclip_kernels import reference


@pytest.mark.parametrize(("reduction", "normalize"), [("mean", True), ("sum", False), ("none", True)])
@pytest.mark.parametrize("objective", objective_cases.OBJECTIVES)
def test_gradients_of_the_oracle_by_differences(objective, reduction, normalize):
    rng = np.random.default_rng(0)
    ids, domains, excluded = [0, 0, 1, 1, 0, -1, 2, 1, 3], [0, 1, 0, 1, 1, 0, 0, 0, 1], [4, 4, -1, -1, 4, 4, 4, -1, 0]
    more = [2, 5, -1, 6, 2], [0, 0, 1, 1, 1], [4, 0, 4, 4, 4]
    weight, mask = rng.uniform(-1, 2, (2, 2)), np.array([[True, True], [True, False]])
    inputs = {
        "grad_embeddings": rng.normal(size=(9, 3)),
        "grad_temperature": rng.uniform(0.3, 1, (2, 2)),
        "grad_offset": rng.normal(size=(2, 2)),
        "grad_candidates": rng.normal(size=(5, 3)),
        "grad_anchor_weight": rng.uniform(0, 2, 9),
    }
    upstream = rng.normal(size=9) if reduction == "none" else -1.7

    def answer() -> brute_force.Answer:
        z, tau, b, y, alpha = inputs.values()
        rows = brute_force.Rows(z, ids, domains, excluded), brute_force.Rows(y, *more)
        options = tau, b, weight, mask, alpha, reduction, normalize, upstream
        return brute_force.differentiate(objective, *rows, *options)

    exact, step = answer(), 1e-5
    for name, x in inputs.items():
        differences = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            for sign in (1, -1):
                x[index] += sign * step
                differences[index] += sign * (upstream * answer().loss.value).sum() / (2 * step)
                x[index] -= sign * step
        assert differences.any()
        np.testing.assert_allclose(getattr(exact, name).value, differences, rtol=1e-7, atol=1e-8)


def test_the_order_of_sums_is_within_the_error_that_the_oracle_expects():
    """Where the offset leaves of a cosine only what rounding moves, which the temperature's gradient is a multiple of."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 131)) / 131**0.5
    offset = np.full((1, 1), z[0] @ z[1] - 2e-5)

    def gradient(z: np.ndarray) -> brute_force.Value:
        rows, none = brute_force.Rows(z, [0, 0], [0, 0], [-1, -1]), brute_force.Rows(z[:0], [], [], [])
        one = np.ones((1, 1))
        answer = brute_force.differentiate("siglip", rows, none, one, offset, one, one > 0, np.ones(2), normalize=False)
        return answer.grad_temperature

    expected = gradient(z)
    allowed = np.finfo(float).eps * (expected.scale + expected.sensitivity)
    errors = [np.abs(gradient(z[:, rng.permutation(131)]).value - expected.value) for _ in range(20)]
    assert max(errors) > np.finfo(float).eps * expected.scale
    assert max(errors) <= allowed


@pytest.mark.parametrize("case", objective_cases.GRID, ids=repr)
def test_reference_on_the_grid(case):
    assert_matches(specification(case, torch.float64), case, torch.float64)


@pytest.mark.parametrize("case", objective_cases.GRID, ids=repr)
def test_plain_pytorch_on_the_grid(case):
    """Whose error in each dtype others are allowed: it must compute the same, and not merely something near it."""
    got, expected = plain(case, torch.float64), oracle(case, torch.float64)
    for name in FIELDS:
        rival, (value, scale, sensitivity, _) = getattr(got, name), getattr(expected, name)
        if rival is not None:
            if rival.shape == ():  # of a number that stands for a table
                value, scale, sensitivity = value.sum(), scale.sum(), sensitivity.sum()
            assert (np.abs(rival - value) <= 1e-13 * (scale + sensitivity) + 1e-300).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", objective_cases.CASES, ids=repr)
def test_reference_in_low_precision(case, dtype):
    assert_matches(specification(case, dtype), case, dtype)


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


#: By s: of row 0 with a second row of its sample at 1, a candidate of its sample at -1, a candidate of another at 0, and one
#: that it excludes. w is 3 for the candidates' domain. Row 1 weighs nothing.
BY_HAND = {
    "mp_nce": lambda e, log: (log(1 + 1 / e) + 3 * log(1 + e)) / 2,
    "sup_con": lambda e, log: ((log(e + 1 / e + 1) - 1) + 3 * (log(e + 1 / e + 1) + 1)) / 2,
    "mil_nce": lambda e, log: log(1 + 1 / (e + 1 / e)),
    "siglip": lambda e, log: log(1 + 1 / e) + 3 * log(1 + e) + log(2 + e - e),
}


@pytest.mark.parametrize("objective", BY_HAND)
def test_all_arguments_by_hand(objective):
    z = torch.tensor([[1.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    weight = {} if objective == "mil_nce" else {"weight": torch.tensor([[1.0, 3.0], [0.0, 0.0]])}
    loss = getattr(reference, objective)(
        z,
        torch.tensor([5, 5]),
        temperature=torch.ones(2, 2),
        **weight,
        exclude_ids=torch.tensor([1, 1]),
        anchor_weight=torch.tensor([2.0, 0.0]),
        candidates=y,
        candidate_sample_ids=torch.tensor([5, 7, 8]),
        candidate_domain_ids=torch.tensor([1, 1, 1]),
        candidate_exclude_ids=torch.tensor([1, -1, 1]),
    )
    expected = BY_HAND[objective](torch.tensor(1.0, dtype=torch.float64).exp(), torch.log)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("sample_ids", [[0, 0, 1, 1, 2, -1], [3, 3, 3, 3]], ids=["some without", "no negatives"])
@pytest.mark.parametrize("objective", objective_cases.OBJECTIVES)
def test_derivatives_that_only_the_reference_has(objective, sample_ids):
    z = torch.randn(len(sample_ids), 3, dtype=torch.float64, requires_grad=True)

    def loss(z):
        return getattr(reference, objective)(z, torch.tensor(sample_ids), temperature=0.5)

    with torch.autograd.set_detect_anomaly(True):
        assert torch.autograd.gradgradcheck(loss, z)
        assert torch.autograd.gradcheck(loss, z, check_forward_ad=True)


def test_mil_nce_takes_no_weight():
    with pytest.raises(TypeError, match="weight"):
        reference.mil_nce(torch.randn(4, 3), torch.arange(4) // 2, weight=2.0)


@pytest.mark.parametrize("objective", objective_cases.OBJECTIVES)
def test_on_the_meta_device(objective):
    z, ids = torch.randn(12, 4, device="meta", requires_grad=True), torch.arange(12, device="meta") // 2
    given = dict(exclude_ids=ids, anchor_weight=torch.rand(12, device="meta", requires_grad=True))
    given |= dict(candidates=z[:5], candidate_sample_ids=ids[:5], candidate_exclude_ids=ids[:5])
    mask = torch.ones(3, 3, dtype=torch.bool, device="meta")
    loss = getattr(reference, objective)(z, ids, ids // 3, domain_mask=mask, candidate_domain_ids=ids[:5], **given)
    loss.backward()
    assert loss.shape == ()
    assert z.grad.shape == z.shape


@pytest.mark.parametrize("objective", objective_cases.OBJECTIVES)
def test_traced_once_for_any_number_of_rows(objective):
    """With sizes that are symbols; ``aot_eager``, as there is nothing to generate."""
    torch._dynamo.reset()  # of the objective before

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def compiled(z, ids, y, more_ids, alpha):
        return getattr(reference, objective)(z, ids, candidates=y, candidate_sample_ids=more_ids, anchor_weight=alpha)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for m, q in ((24, 10), (40, 7), (33, 50)):
            z, y, alpha = torch.randn(m, 6, requires_grad=True), torch.randn(q, 6, requires_grad=True), torch.rand(m)
            ids, more_ids = torch.arange(m) // 2, torch.arange(q)
            options = dict(candidates=y, candidate_sample_ids=more_ids, anchor_weight=alpha)
            expected = getattr(reference, objective)(z, ids, **options)
            torch.testing.assert_close(compiled(z, ids, y, more_ids, alpha), expected)


def test_it_is_short():
    assert len(Path(reference.__file__).read_text().splitlines()) < 150
