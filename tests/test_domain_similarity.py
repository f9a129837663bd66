"""The matrix of domain-dependent similarities: values and gradients against the oracle, in the error budget of the grid."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests import brute_force
from tests.cases import every_other, symmetric, transposed, unaligned
from tests.evaluate import accumulator, assert_close
from uniclip_kernels import domain_similarity, reference
from uniclip_kernels._backend import find

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Case:
    mx: int
    my: int
    d: int
    k: int = 3
    tau: float = 0.05
    normalize: bool = True
    layout: callable = lambda z: z
    upstream: callable = lambda g: g  # applied to the gradient of the matrix

    def arguments(self, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """x, y, τ and b; the domain ids of x and of y; the gradient of the matrix."""
        rng = torch.Generator().manual_seed(self.mx * 1000 + self.my)
        x, y = (self.layout(torch.randn(m, self.d, generator=rng).to(dtype)) for m in (self.mx, self.my))
        ids = [torch.randint(self.k, (m,), generator=rng) for m in (self.mx, self.my)]
        tau, b = torch.rand(self.k, self.k, generator=rng) + self.tau, torch.randn(self.k, self.k, generator=rng)
        upstream = self.upstream(torch.randn(self.mx, self.my, generator=rng))
        return [x, y, tau.to(accumulator(dtype)), b.to(accumulator(dtype))], ids, upstream.to(accumulator(dtype))


CASES = {
    "one": Case(1, 1, 2),
    "small": Case(5, 7, 3),
    "whole-tiles": Case(64, 128, 32),
    "ragged": Case(33, 129, 24),
    "one-domain": Case(65, 31, 17, k=1),
    "five-domains": Case(200, 63, 70, k=5),
    "no-x": Case(0, 4, 5),
    "no-y": Case(3, 0, 5),
    "deep": Case(40, 50, 1030),
    "wide": Case(3, 1100, 9),
    "tall": Case(1100, 3, 9),
    "cold": Case(40, 40, 20, tau=0.005),
    "not-normalized": Case(40, 40, 20, normalize=False),
    "zero-rows": Case(40, 40, 20, layout=lambda z: z * (torch.arange(40) % 5 > 0)[:, None]),
    "transposed": Case(50, 40, 19, layout=transposed, upstream=transposed),
    "strided": Case(50, 40, 19, layout=every_other, upstream=every_other),
    "unaligned": Case(50, 40, 19, layout=unaligned, upstream=unaligned),
    "expanded-upstream": Case(50, 40, 19, upstream=lambda g: g[:1, :1].expand(g.shape)),
    "huge-upstream": Case(50, 40, 19, upstream=lambda g: 1e15 * g),
}


def differentiate(case, dtype, function):
    leaves, ids, upstream = case.arguments(dtype)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    s = function(*leaves[:2], *ids, temperature=leaves[2], offset=leaves[3], normalize=case.normalize)
    assert s.dtype == accumulator(dtype)
    return [t.detach().double().numpy() for t in (s, *torch.autograd.grad(s, leaves, upstream))]


def plain(x, y, x_ids, y_ids, *, temperature, offset, normalize):
    x, y = ((F.normalize(z, dim=1) if normalize else z).to(accumulator(z.dtype)) for z in (x, y))
    pair = torch.minimum(x_ids[:, None], y_ids), torch.maximum(x_ids[:, None], y_ids)
    return (x @ y.T - offset[pair]) / temperature[pair]


def assert_matches(got, case, dtype):
    (x, y, tau, b), ids, upstream = case.arguments(dtype)
    ids = [i.tolist() for i in ids]
    x, y, tau, b, upstream = (t.double().numpy() for t in (x, y, tau, b, upstream))
    expected = brute_force.domain_similarity(x, y, *ids, tau, b, upstream, case.normalize)
    outs = accumulator(dtype), dtype, dtype, accumulator(dtype), accumulator(dtype)
    for name, *values, out in zip(
        expected._fields, got, expected, differentiate(case, dtype, plain), outs, strict=True
    ):
        assert_close(name, *values, dtype, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_values_and_gradients(case, dtype, backend):
    got = differentiate(case, dtype, lambda *args, **options: domain_similarity(*args, **options, backend=backend))
    assert_matches(got, case, dtype)


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
