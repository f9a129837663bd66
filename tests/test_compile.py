"""torch.compile, torch.export and tensors without values: one graph for every number of rows, shapes without rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import fresh_cache
from torch._subclasses.fake_tensor import FakeTensorMode

from uniclip_kernels import MPNCELoss, domain_similarity, mil_nce, mp_nce, siglip, sup_con
from uniclip_kernels._backend import find

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# From one tile to several rectangles, some of more tiles than domains. First neither D nor K: equal sizes are one to PyTorch.
SIZES = (20, 2, 33, 40, 100, 1000, 1500, 3000)


@pytest.fixture(autouse=True)
def _forget_graphs():
    """Those of an earlier case would count as compiled before."""
    torch._dynamo.reset()


def inputs(m: int, num_domains: int = 2, dtype: torch.dtype = torch.float32, d: int = 12) -> tuple[Tensor, ...]:
    return torch.randn(m, d).to(dtype).requires_grad_(), torch.arange(m) // 3, torch.arange(m) % num_domains


def table(num_domains: int) -> float | Tensor:
    return 0.1 if num_domains == 1 else 0.05 + torch.rand(num_domains, num_domains)


def graphs(function: Callable, calls: Iterable[tuple], dynamic: bool | None = True) -> int:
    """How many graphs ``calls`` take, whose values and gradients must be those of eager mode to the last bit."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter)
    first = None
    for arguments in calls:
        results = []
        for f in (compiled, function):
            loss = f(*arguments)
            leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
            results.append([loss, *torch.autograd.grad(loss.square().sum(), leaves)])
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
        first = first or counter.frame_count  # in which PyTorch may have begun anew
    return 1 + counter.frame_count - first


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_domains", [1, 2, 40])
def test_one_graph_of_the_loss_for_every_number_of_rows(num_domains, dtype):
    tau = table(num_domains)

    def loss(*rows):
        return mp_nce(*rows, temperature=tau, offset=0.1, backend="cpu")

    assert graphs(loss, (inputs(m, num_domains, dtype) for m in SIZES)) == 1


@pytest.mark.parametrize("objective", [mp_nce, sup_con, mil_nce, siglip])
def test_one_graph_for_every_number_of_rows_and_candidates(objective):
    tau = table(2)

    def loss(z, ids, domains, candidates, alpha):
        of_candidates = dict(candidates=candidates, candidate_sample_ids=torch.arange(candidates.shape[0]))
        options = dict(temperature=tau, offset=0.1, anchor_weight=alpha, exclude_ids=ids // 2, backend="cpu")
        excluded = of_candidates["candidate_sample_ids"] // 2
        return objective(z, ids, domains, **options, **of_candidates, candidate_exclude_ids=excluded)

    sizes = [(20, 35), (2, 33), (33, 2), (300, 1000), (1000, 300)]
    calls = ((*inputs(m), inputs(q)[0], torch.rand(m, requires_grad=True)) for m, q in sizes)
    assert graphs(loss, calls) == 1


def test_one_graph_also_for_very_many_rows():
    assert (
        graphs(lambda *rows: mp_nce(*rows, temperature=0.1, backend="cpu"), (inputs(m, d=3) for m in (20, 20000))) == 1
    )


@pytest.mark.parametrize(
    ("num_domains", "dtype"), [*((2, dtype) for dtype in DTYPES), (1, torch.float32), (40, torch.float32)], ids=str
)
def test_one_graph_of_the_similarity_for_every_number_of_rows(num_domains, dtype):
    tau = table(num_domains)

    def similarity(x, _, domain_ids):
        return domain_similarity(x, None, domain_ids, temperature=tau, offset=0.1, backend="cpu")

    assert graphs(similarity, (inputs(m, num_domains, dtype) for m in (20, *range(2, 40, 5), 40, 1500, 2500))) == 1


@pytest.mark.parametrize("uses", ["once", "loss and table", "twice"])
def test_one_graph_of_the_module_for_every_number_of_rows(uses):
    criterion = MPNCELoss(backend="cpu")

    def step(*rows):
        loss = criterion(*rows)
        return (
            loss + {"once": 0, "loss and table": criterion.temperature.detach().mean(), "twice": criterion(*rows)}[uses]
        )

    assert graphs(step, (inputs(m) for m in (20, 41, 300))) == 1


@pytest.mark.parametrize(("dynamic", "most"), [(True, 1), (None, 2)])
@pytest.mark.parametrize("function", ["mp_nce", "domain_similarity"])
def test_a_number_that_changes_makes_no_new_graph(function, dynamic, most):
    def step(z, ids, _, number):
        options = dict(temperature=number, offset=number - 0.3, backend="cpu")
        return mp_nce(z, ids, **options) if function == "mp_nce" else domain_similarity(z, **options)

    rows = inputs(20)
    assert graphs(step, ((*rows, number) for number in (0.1, 0.2, 0.3, 1.5)), dynamic) <= most


def test_compiles_with_inductor():
    z, ids, domains = inputs(24)

    def both(z):
        similarity = domain_similarity(z, None, domains, temperature=0.2, backend="cpu")
        return mp_nce(z, ids, domains, temperature=0.1, backend="cpu") + similarity.square().mean()

    torch.testing.assert_close(torch.compile(both, fullgraph=True)(z), both(z))


def test_graphs_kept_on_disk_are_not_taken_for_those_of_another_processor(monkeypatch):
    z, ids, _ = inputs(24, dtype=torch.bfloat16)

    def step():
        return torch.autograd.grad(mp_nce(z, ids, backend="cpu") + domain_similarity(z, backend="cpu").mean(), z)

    with fresh_cache(), torch._inductor.config.patch(fx_graph_cache=True):
        for operands in (torch.float32, torch.int16):
            monkeypatch.setattr(find("cpu"), "bfloat16_products", operands)
            torch._dynamo.reset()
            torch.testing.assert_close(torch.compile(step)(), step())


class Similarity(nn.Module):
    def forward(self, x: Tensor, _: Tensor, domain_ids: Tensor) -> Tensor:
        return domain_similarity(x, None, domain_ids, temperature=0.1)


class Loss(nn.Module):
    def forward(self, *rows: Tensor) -> Tensor:
        return mp_nce(*rows, temperature=0.1)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("module", [MPNCELoss(), Similarity(), Loss()], ids=lambda module: type(module).__name__)
def test_exports_with_any_number_of_rows(module, strict):
    rows = torch.export.Dim("M", min=2, max=100_000)
    shapes = ((({0: rows},) * 3),) if isinstance(module, Loss) else ({0: rows},) * 3
    exported = torch.export.export(module, inputs(20), dynamic_shapes=shapes, strict=strict).module()
    for m in (2, 2000):
        arguments = inputs(m)
        torch.testing.assert_close(exported(*arguments), module(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_rows_on_the_meta_device(backend, dtype):
    m, tau = 30, torch.full((2, 2), 0.1, device="meta", requires_grad=True)
    z, ids, domains = (t.detach().to("meta") for t in inputs(m, dtype=dtype))
    z.requires_grad_()
    mask = torch.ones(2, 2, dtype=torch.bool, device="meta")
    options = dict(temperature=tau, offset=0.1, backend=backend)
    loss = mp_nce(z, ids, domains, weight=2.0, domain_mask=mask, **options)
    each = mp_nce(z, ids, domains, reduction="none", **options)
    s = domain_similarity(z, None, domains, **options)
    for value, shape in ((loss, ()), (each, (m,)), (s, (m, m))):
        assert (value.device.type, value.dtype, value.shape) == ("meta", torch.float32, shape)
    for value in (loss, s.sum()):
        grads = torch.autograd.grad(value, (z, tau))
        assert [(g.device.type, g.dtype, g.shape) for g in grads] == [("meta", t.dtype, t.shape) for t in (z, tau)]


@pytest.mark.parametrize("num_domains", [2, 40])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_tensors_that_have_a_shape_alone(backend, num_domains):
    """Made and used under FakeTensorMode, as by those who estimate memory."""
    with FakeTensorMode():
        criterion = MPNCELoss(num_domains, backend=backend)
        z, *ids = inputs(30, num_domains)
        loss = criterion(z, *ids)
        loss.backward()
        s = domain_similarity(z, None, ids[1], temperature=criterion.temperature, backend=backend)
        (grad,) = torch.autograd.grad(s.sum(), z)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert (s.shape, s.dtype) == ((30, 30), torch.float32)
    assert z.grad.shape == grad.shape == z.shape
    assert criterion.log_temperature.grad.shape == (num_domains * (num_domains + 1) // 2,)
