"""The cases of ``domain_similarity`` that every backend runs, and how a result is held against the oracle."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from tests import brute_force
from tests.cases import every_other, transposed, unaligned
from tests.evaluate import accumulator, assert_close, rounding


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
        got, right, rival = values
        assert_close(name, got, right, rival, rounding(rival, right, out), dtype, out)
