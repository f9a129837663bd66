"""The shared grid: small inputs of mp_nce that every backend must get right, in every dtype.

A ``Case`` holds CPU tensors and keyword arguments of an objective of ``uniclip_kernels``; ``tests.evaluate`` runs it on a
backend and compares it with the oracle. ``CASES`` is the grid; ``BY_NAME`` finds one of them. The other objectives, and what
else they can be given, are in ``tests.objective_cases``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


def as_they_are(z: Tensor) -> Tensor:
    return z


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows that are no anchors: (Q, D) values and ids as those of a ``Case``."""

    embeddings: Tensor
    sample_ids: Tensor
    domain_ids: Tensor | None = None
    exclude_ids: Tensor | None = None
    requires_grad: bool = True
    layout: Callable[[Tensor], Tensor] = as_they_are

    def rows(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        return self.layout(self.embeddings.to(device, dtype))


@dataclass(frozen=True, eq=False)
class Case:
    """One call of an objective.

    ``embeddings`` (M, D) are float32 values; ``rows`` casts them to the dtype under test and then applies ``layout``, which gives
    them other strides or values. ``options`` are keyword arguments, ``exclude_ids`` and ``anchor_weight`` among them.
    ``upstream`` is the gradient of the loss: a number, or (M,) for reduction "none".
    """

    name: str
    embeddings: Tensor
    sample_ids: Tensor
    domain_ids: Tensor | None = None
    options: dict = field(default_factory=dict)
    upstream: float | Tensor = 1.0
    layout: Callable[[Tensor], Tensor] = as_they_are
    objective: str = "mp_nce"
    candidates: Candidates | None = None

    @property
    def num_domains(self) -> int:
        """K; 1 where no argument tells it, as domains then make no difference."""
        tables = (t for t in self.options.values() if isinstance(t, Tensor) and t.ndim == 2)
        return next((len(t) for t in tables), 1)

    def rows(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """The embeddings as they are given."""
        return self.layout(self.embeddings.to(device, dtype))

    def __repr__(self) -> str:
        return self.name


def make_case(
    name: str,
    m: int,
    d: int = 24,
    *,
    objective: str = "mp_nce",
    samples: int | None = None,
    sample_ids: Tensor | None = None,
    domains: int = 2,
    domain_ids: Tensor | None = None,
    padding: float = 0.0,
    groups: int = 0,
    candidates: int | None = None,
    candidates_require_grad: bool = True,
    norms: tuple[float, float] = (0.5, 2.0),
    layout: Callable[[Tensor], Tensor] = as_they_are,
    upstream: float | Tensor = 1.0,
    **options,
) -> Case:
    """Rows scattered around the centre of their sample, in random order.

    ``samples``: how many there are at most (default m / 3); ``padding``: share of padding rows; ``norms``: range of ‖z‖,
    log-uniform; ``groups``: of samples that exclude each other, about as many samples again are in none; ``candidates``: how many
    rows more there are that are candidates, of ids that come after those of the m rows. Unless told otherwise every pair of the
    ``domains`` has its own temperature, offset and weight.
    """
    rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    samples = max(samples or m // 3, 1)
    n = m + (candidates or 0)
    if sample_ids is None:
        sample_ids = torch.randint(samples, (n,), generator=rng)
        sample_ids[torch.rand(n, generator=rng) < padding] = -1
    if domain_ids is None:
        domain_ids = torch.randint(domains, (n,), generator=rng)
    centre = torch.randn(max(n, 1), d, generator=rng)[sample_ids.long() % max(n, 1)]
    z = torch.randn(n, d, generator=rng) + 0.8 * centre
    low, high = (torch.tensor(length).log() for length in norms)
    z = torch.nn.functional.normalize(z, dim=1) * (low + (high - low) * torch.rand(n, 1, generator=rng)).exp()
    options.setdefault("temperature", symmetric(0.05 + 0.2 * torch.rand(domains, domains, generator=rng)))
    options.setdefault("offset", symmetric(0.4 * torch.rand(domains, domains, generator=rng) - 0.2))
    if objective != "mil_nce":
        options.setdefault("weight", 0.2 + torch.rand(domains, domains, generator=rng))
    if options.get("reduction") == "none" and not isinstance(upstream, Tensor):
        upstream = torch.randn(m, generator=rng)
    exclude_ids = None
    if groups:
        exclude_ids = torch.randint(-groups, groups, (samples,), generator=rng)[sample_ids.long() % samples]
        options["exclude_ids"] = exclude_ids[:m]
    others = None
    if candidates is not None:
        ids = (None if of_all is None else of_all[m:] for of_all in (sample_ids, domain_ids, exclude_ids))
        others = Candidates(z[m:], *ids, candidates_require_grad, layout)
    return Case(name, z[:m], sample_ids[:m], domain_ids[:m], options, upstream, layout, objective, others)


_random = torch.Generator().manual_seed(0)


def symmetric(table: Tensor) -> Tensor:
    return table.triu() + table.triu(1).T


def mask_without(k: int, *pairs: tuple[int, int]) -> Tensor:
    """(k, k) domain_mask that drops these pairs."""
    mask = torch.ones(k, k, dtype=torch.bool)
    for a, b in pairs:
        mask[a, b] = mask[b, a] = False
    return mask


def transposed(z: Tensor) -> Tensor:
    return z.T.contiguous().T


def every_other(z: Tensor) -> Tensor:
    """Each element stands alone among others that must not be touched."""
    wide = torch.full((2 * z.shape[0] + 1, 3 * z.shape[1] + 1), torch.nan, dtype=z.dtype, device=z.device)
    wide[1::2, 1::3] = z
    return wide[1::2, 1::3]


def unaligned(z: Tensor) -> Tensor:
    """Rows that start at odd addresses, between NaN."""
    wide = torch.full((z.shape[0] + 1, z.shape[1] + 2), torch.nan, dtype=z.dtype, device=z.device)
    wide[1:, 1:-1] = z
    return wide[1:, 1:-1]


def half_alike(z: Tensor) -> Tensor:
    """Every other pair of rows points in nearly one direction: log-sum-exps lie far apart."""
    z = z.clone()
    z[torch.arange(len(z), device=z.device) // 2 % 2 == 1, 0] += 20
    return z


def every_fourth_not_finite(z: Tensor) -> Tensor:
    z = z.clone()
    z[::8], z[4::8] = torch.nan, torch.inf
    return z


def _sizes() -> Iterator[Case]:
    for m, d in zip((1, 2, 3, 31, 32, 33, 63, 64, 65), (3, 1, 2, 31, 32, 33, 8, 64, 65), strict=True):
        yield make_case(f"rows-{m}", m, d)
    for m in (127, 128, 129, 200):
        yield make_case(f"rows-{m}-one-domain", m, domains=1)
        yield make_case(f"rows-{m}", m, 70)
    yield make_case("empty", 0)
    yield make_case("two-rows-one-sample", 2, samples=1, domains=1)
    for d in (1, 2, 7, 15, 17):
        yield make_case(f"columns-{d}", 40, d)
    for d in (511, 513, 1030):
        yield make_case(f"columns-{d}", 48, d)
    yield make_case("larger", 420, 40, domains=3, samples=90, padding=0.1)


def _layouts() -> Iterator[Case]:
    yield make_case("transposed", 50, 33, layout=transposed)
    yield make_case("strided", 50, 33, layout=every_other)
    yield make_case("unaligned", 50, 33, layout=unaligned)
    one = torch.linspace(-1, 1, 19)
    sample_ids = torch.arange(40) // 3
    yield Case("expanded-row", one.repeat(40, 1), sample_ids, layout=lambda z: z[0].expand(z.shape))
    yield Case("expanded-column", torch.ones(40, 19), sample_ids, layout=lambda z: z[:, :1].expand(z.shape))


def _sets() -> Iterator[Case]:
    yield make_case("padding", 70, padding=0.3)
    yield make_case("padding-mostly", 150, samples=5, padding=0.9)
    yield make_case("padding-all", 20, sample_ids=torch.full((20,), -1))
    sample_ids = torch.arange(72) // 5
    sample_ids[::4] = -1
    yield make_case("padding-not-finite", 72, sample_ids=sample_ids, layout=every_fourth_not_finite)
    huge = torch.iinfo(torch.int64)
    yield make_case("padding-ids", 40, sample_ids=torch.tensor([-1, 0, huge.min, 0, -7, 1, 1, 2]).repeat(5))
    yield make_case("no-positive", 40, sample_ids=torch.randperm(40, generator=_random))
    yield make_case("all-positive", 40, samples=1)
    yield make_case("one-row-each", 60, sample_ids=torch.arange(30).repeat(2), domain_ids=torch.arange(60) // 30)
    yield make_case("few-samples", 200, samples=3)
    many = torch.cat([torch.zeros(150, dtype=torch.long), 1 + torch.arange(50) // 2])
    yield make_case("many-positives", 200, sample_ids=many[torch.randperm(200, generator=_random)], domains=1)
    spanning = torch.arange(100) // 20
    yield make_case("sample-in-every-domain", 100, sample_ids=spanning, domains=5, domain_ids=torch.arange(100) % 5)
    yield make_case("duplicate-rows", 60, norms=(1.0, 1.0), layout=lambda z: z[torch.arange(60) // 4])


def _ids() -> Iterator[Case]:
    top = torch.iinfo(torch.int64).max
    some = torch.tensor([top, top - 1, 1 << 62, 5, 1 << 33, (1 << 33) + (1 << 32), 0])
    yield make_case("ids-huge", 63, sample_ids=some.repeat(9))
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        highest = torch.iinfo(dtype).max
        ids = torch.tensor([highest, highest - 1, 3, 0]).repeat(12).to(dtype)
        yield make_case(
            f"ids-{dtype}".replace("torch.", ""), 48, sample_ids=ids, domain_ids=(torch.arange(48) % 2).to(dtype)
        )
    strided = torch.stack([torch.arange(48) // 3, torch.arange(48) % 2], 1)
    yield make_case("ids-strided", 48, sample_ids=strided[:, 0], domain_ids=strided[:, 1])


def _domains() -> Iterator[Case]:
    rows, sample_ids = torch.randn(40, 24, generator=_random), torch.arange(40) // 2
    yield Case("all-defaults", rows, sample_ids)
    yield Case(
        "domain-ids-none", rows, sample_ids, options=dict(temperature=0.05 + torch.rand(3, 3, generator=_random))
    )
    yield make_case("only-domain-1-of-3", 40, domains=3, domain_ids=torch.ones(40, dtype=torch.long))
    yield make_case("five-domains", 190, domains=5, samples=30)
    sparse = torch.tensor([4, 1, 1, 4, 3]).repeat(20)
    yield make_case("five-domains-two-empty", 100, domains=5, domain_ids=sparse, samples=20)
    yield make_case("domain-of-one-row", 66, domain_ids=(torch.arange(66) == 65).long(), samples=10)
    yield make_case("domains-ignored", 40, domains=7, temperature=0.1, offset=torch.tensor(0.1), weight=1.5)
    clip = mask_without(2, (0, 0), (1, 1))
    yield make_case("image-text-only", 80, domain_mask=clip, samples=20)
    ids, domain_ids = torch.arange(40).repeat(2), torch.arange(80) // 40
    infonce = dict(temperature=0.07, offset=0.0, weight=1.0)
    yield make_case("clip", 80, sample_ids=ids, domain_ids=domain_ids, domain_mask=clip, **infonce)
    yield make_case("mask-cross", 80, domain_mask=mask_without(2, (0, 1)), samples=20)
    yield make_case("mask-texts", 80, domain_mask=mask_without(2, (1, 1)), samples=20)
    yield make_case("mask-all", 30, domain_mask=torch.zeros(2, 2, dtype=torch.bool))
    some = mask_without(5, (0, 0), (0, 3), (1, 4), (2, 2), (2, 4))
    yield make_case("mask-some-of-five", 190, domains=5, domain_mask=some, samples=30, padding=0.1)
    yield make_case("mask-leaves-no-negative", 20, domain_mask=clip, samples=1)
    kinds = torch.arange(5) < 2
    yield make_case("mask-of-two-kinds", 130, domains=5, domain_mask=kinds[:, None] != kinds)
    last = (torch.arange(420) % 5).masked_fill(torch.arange(420) < 400, -1)
    yield make_case("mask-behind-much-padding", 420, domain_mask=clip, sample_ids=last)


def _few_classes() -> Iterator[Case]:
    """Labels as sample ids: tiles of 128 x 128 that hold positives alone, negatives alone, and both."""
    for samples in (1, 2, 10):
        yield make_case(f"classes-{samples}", 300, 32, samples=samples, domains=1)
    yield make_case("classes-2-of-3-domains", 420, samples=2, domains=3, padding=0.1)
    uneven = torch.arange(400).mul(7).remainder(400).ge(260).long()  # with tiles in which one class ends
    yield make_case("classes-uneven", 400, 40, sample_ids=uneven, domains=1, reduction="none", weight=-0.7)
    clip = mask_without(2, (0, 0), (1, 1))
    yield make_case("classes-image-text", 320, samples=2, domain_mask=clip, padding=0.1)
    weight = torch.tensor([[1.0, -0.5, 0.0], [0.3, 2.0, 0.7], [-1.0, 0.2, 0.4]])
    some = mask_without(3, (0, 2))
    yield make_case("classes-10-of-3-domains", 420, samples=10, domains=3, domain_mask=some, weight=weight)
    yield make_case("classes-apart", 300, samples=2, domains=1, temperature=0.006, layout=half_alike)


def _full_tiles() -> Iterator[Case]:
    """Tiles of 128 x 128 that hold negatives alone, for which GPU backends take one exponential an element where they can."""
    ids = torch.arange(520)
    yield make_case("full-tiles", 520, 64, sample_ids=ids // 2, domains=1)
    for tau in (0.01, 0.005):
        yield make_case(f"full-tiles-{tau}", 520, 64, sample_ids=ids // 2, domains=1, temperature=tau)
    yield make_case("full-tiles-apart", 520, 64, sample_ids=ids // 2, domains=1, temperature=0.008, layout=half_alike)
    yield make_case("full-tiles-large", 520, 64, sample_ids=ids // 2, domains=1, normalize=False, norms=(5.0, 20.0))


def _similarities() -> Iterator[Case]:
    for tau in (0.005, 0.01, 10.0):
        yield make_case(f"temperature-{tau}", 100, 48, temperature=tau, offset=0.0)
    wide = symmetric(torch.tensor([[0.005, 0.3, 1.0], [0, 0.05, 10.0], [0, 0, 0.02]]))
    yield make_case("temperatures-mixed", 100, domains=3, temperature=wide)
    scalar = dict(temperature=torch.tensor(0.1), offset=torch.tensor(-0.2))
    yield make_case("scalars-0-dim", 50, weight=torch.tensor(0.7), **scalar)
    yield make_case("scalars-and-weight", 50, **scalar)
    lower = torch.full((2, 2), torch.nan).tril(-1)
    upper = torch.tensor([[0.1, 0.2], [0.0, 0.3]])
    yield make_case("upper-triangle-only", 50, temperature=upper + lower, offset=upper - 0.2 + lower)
    wider = 0.1 + torch.rand(4, 6, generator=_random)
    tables = dict(temperature=wider[::2, ::3], offset=wider[1:3, 1:3].T, weight=wider[:2, 2:4].T)
    yield make_case("tables-strided", 50, **tables)
    yield make_case("offset-large", 50, offset=symmetric(torch.tensor([[5.0, -3.0], [0.0, 0.5]])))
    yield make_case("weight-some-zero", 90, domains=3, weight=torch.tensor([[0.0, 1, 0], [2, 0, 0], [0.5, 0, 1]]))
    yield make_case("weight-all-zero", 30, weight=0.0)
    yield make_case("weight-negative", 50, weight=torch.tensor([[1.0, -0.5], [0.3, 2.0]]))
    for low, high in ((1e-4, 1e-4), (1e4, 1e4), (1e-4, 1e4)):
        yield make_case(f"norms-{low:g}-{high:g}", 60, 48, norms=(low, high))
    yield make_case("zero-rows", 40, layout=lambda z: z * (torch.arange(40, device=z.device) % 5 > 0)[:, None])
    yield make_case("tiny-rows", 40, norms=(1e-15, 1e-9))
    yield make_case("not-normalized", 90, 48, normalize=False)
    yield make_case("not-normalized-large", 60, 16, normalize=False, norms=(5.0, 50.0), temperature=1.0)


def _reductions() -> Iterator[Case]:
    yield make_case("mean-upstream", 60, upstream=-2.5, padding=0.2)
    yield make_case("sum", 60, reduction="sum", upstream=0.3, padding=0.2)
    yield make_case("none", 100, reduction="none", padding=0.2)
    yield make_case("none-upstream-zero", 40, reduction="none", upstream=torch.zeros(40))
    yield make_case("none-upstream-one", 70, reduction="none", upstream=(torch.arange(70) == 11).float(), samples=10)
    yield make_case("none-upstream-huge", 70, reduction="none", upstream=1e20 * torch.randn(70, generator=_random))
    yield make_case("none-empty", 0, reduction="none")
    yield make_case("sum-upstream-tiny", 60, reduction="sum", upstream=1e-20)


def _many_domains() -> Iterator[Case]:
    """So many that no tile would be full of one pair of domains."""
    yield make_case("domains-17", 120, domains=17)
    signs = torch.randn(17, 17, generator=_random)
    yield make_case(
        "domains-17-weight-negative", 150, domains=17, samples=20, padding=0.2, weight=signs, reduction="none"
    )
    mask = symmetric((torch.rand(40, 40, generator=_random) < 0.6).int()).bool()
    yield make_case("domains-40", 250, domains=40, samples=30, padding=0.1, domain_mask=mask)
    few = torch.tensor([39, 7, 0, 7]).repeat(30)
    yield make_case(
        "domains-40-most-empty", 120, 40, domains=40, domain_ids=few, samples=2, weight=-0.7, upstream=-1e-20
    )
    yield make_case("domains-40-not-normalized", 100, domains=40, normalize=False, reduction="sum", upstream=1e10)
    alone = dict(domain_ids=torch.arange(20) % 17, domain_mask=torch.eye(17).bool())
    yield make_case("domains-17-none-compared", 20, domains=17, **alone)
    yield make_case("domains-17-padding-all", 20, domains=17, sample_ids=torch.full((20,), -1))
    yield make_case("domains-17-empty", 0, domains=17)


CASES = [
    *_sizes(),
    *_layouts(),
    *_sets(),
    *_ids(),
    *_domains(),
    *_few_classes(),
    *_full_tiles(),
    *_similarities(),
    *_reductions(),
    *_many_domains(),
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases of one name"
