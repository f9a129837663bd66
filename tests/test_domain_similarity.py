"""The matrix of domain-dependent similarities: values against a double loop, gradients against the reference's."""

import pytest
import torch

from uniclip_kernels import domain_similarity

SIZES = [(1, 1, 2), (5, 7, 3), (33, 129, 24), (200, 64, 70), (0, 4, 5), (3, 0, 5), (130, 1100, 9)]


def arguments(mx, my, d, dtype):
    rng = torch.Generator().manual_seed(mx * my + d)
    x = torch.randn(mx, d, generator=rng).to(dtype)
    y = torch.randn(my, d, generator=rng).to(dtype)
    ids = torch.randint(3, (mx,), generator=rng), torch.randint(3, (my,), generator=rng)
    tau, b = torch.rand(3, 3, generator=rng) + 0.05, torch.randn(3, 3, generator=rng)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    return x, y, ids, tau.to(accumulator), b.to(accumulator)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("normalize", [True, False])
def test_values_by_a_double_loop(backend, normalize):
    x, y, (dx, dy), tau, b = arguments(9, 11, 6, torch.float64)
    s = domain_similarity(x, y, dx, dy, temperature=tau, offset=b, normalize=normalize, backend=backend)
    for i in range(9):
        for j in range(11):
            dot = sum(float(x[i, k]) * float(y[j, k]) for k in range(6))
            if normalize:
                dot /= float(x[i].norm() * y[j].norm())
            lo, hi = sorted((int(dx[i]), int(dy[j])))
            assert float(s[i, j]) == pytest.approx((dot - float(b[lo, hi])) / float(tau[lo, hi]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("mx", "my", "d"), SIZES)
def test_values_and_gradients(mx, my, d, dtype):
    x, y, ids, tau, b = arguments(mx, my, d, dtype)
    upstream = torch.randn(mx, my, dtype=torch.float64)

    def run(backend, exact):
        leaves = [(t.double() if exact else t).detach().clone().requires_grad_() for t in (x, y, tau, b)]
        s = domain_similarity(*leaves[:2], *ids, temperature=leaves[2], offset=leaves[3], backend=backend)
        return s, torch.autograd.grad(s, leaves, upstream.to(s.dtype))

    s, grads = run("cpu", exact=False)
    expected, expected_grads = run("reference", exact=True)
    assert s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rtol = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    terms = (upstream.abs() * (1 + expected.abs())).sum() / tau.min()
    for got, wanted in zip((s, *grads), (expected, *expected_grads), strict=True):
        # Relative to the norm, for elements cancel. A table's gradient is a sum: relative to the magnitudes of its terms.
        scale = terms if got.shape == tau.shape else wanted.norm()
        assert (got.double() - wanted).norm() <= rtol * scale


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_without_y_it_compares_x_with_itself(backend):
    x, _, (ids, _), tau, b = arguments(40, 3, 7, torch.float32)
    tables = {"temperature": tau, "offset": b, "backend": backend}
    assert torch.equal(domain_similarity(x, None, ids, **tables), domain_similarity(x, x, ids, ids, **tables))
