"""The matrix of domain-dependent similarities: values and gradients against the oracle, in the error budget of the grid."""

import pytest
import torch

from tests import brute_force
from tests.cases import symmetric
from tests.similarity_cases import CASES, Case, assert_matches, differentiate
from uniclip_kernels import domain_similarity, reference
from uniclip_kernels._backend import find

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_and_gradients(case, dtype, backend):
    got = differentiate(case, dtype, lambda *args, **options: domain_similarity(*args, **options, backend=backend))
    assert_matches(got, case, dtype)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fixed_point_products(case, monkeypatch):
    monkeypatch.setattr(find("cpu"), "bfloat16_products", torch.int16)
    assert_matches(differentiate(case, torch.bfloat16, domain_similarity), case, torch.bfloat16)


@pytest.mark.parametrize("name", ["ragged", "whole-tiles", "five-domains", "wide", "tall"])
def test_many_rectangles_of_the_gradient(name, monkeypatch):
    monkeypatch.setattr(find("cpu"), "workspace_bytes", 32 * 32 * 4)
    assert_matches(differentiate(CASES[name], torch.float32, domain_similarity), CASES[name], torch.float32)


def test_the_oracle_by_a_double_loop():
    case = Case(9, 11, 6)
    (x, y, tau, b), ids, upstream = case.arguments(torch.float64)
    dx, dy = (i.tolist() for i in ids)
    arrays = [t.numpy() for t in (tau, b, upstream)]
    s = brute_force.domain_similarity(x.numpy(), y.numpy(), dx, dy, *arrays).s.value
    for i in range(9):
        for j in range(11):
            cosine = sum(float(x[i, k]) * float(y[j, k]) for k in range(6)) / float(x[i].norm() * y[j].norm())
            lo, hi = sorted((dx[i], dy[j]))
            assert s[i, j] == pytest.approx((cosine - float(b[lo, hi])) / float(tau[lo, hi]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("function", [domain_similarity, reference.domain_similarity])
def test_without_y_it_compares_x_with_itself(function):
    x, ids = torch.randn(40, 7, requires_grad=True), torch.arange(40) % 3
    options = {"temperature": symmetric(0.1 + torch.rand(3, 3)), "offset": 0.3}
    upstream = torch.randn(40, 40)
    both = function(x, None, ids, **options), function(x, x, ids, ids, **options)
    assert torch.equal(*both)
    torch.testing.assert_close(*(torch.autograd.grad(s, x, upstream)[0] for s in both))


def test_domains_left_out_are_domain_0():
    x, y, ids = torch.randn(20, 7), torch.randn(30, 7), torch.arange(20) % 2
    tau = torch.tensor([[0.1, 0.2], [9, 0.3]])
    expected = domain_similarity(x, y, ids, torch.zeros(30, dtype=torch.int16), temperature=tau)
    assert torch.equal(domain_similarity(x, y, ids, temperature=tau), expected)


@pytest.mark.parametrize("wanted", range(4))
def test_partial_requires_grad(wanted):
    leaves, ids, upstream = Case(40, 33, 9).arguments(torch.float32)

    def gradients(chosen):
        used = [leaf.detach().requires_grad_(n in chosen) for n, leaf in enumerate(leaves)]
        domain_similarity(*used[:2], *ids, temperature=used[2], offset=used[3]).backward(upstream)
        return [leaf.grad for leaf in used]

    everything = gradients(range(4))
    for n, grad in enumerate(gradients([wanted])):
        assert (grad is not None) == (n == wanted)
        assert n != wanted or torch.equal(grad, everything[n])
