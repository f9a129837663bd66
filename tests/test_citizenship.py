"""What PyTorch users take for granted: opcheck, gradcheck, autocast, partial gradients, repeatability, counted work."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.cases import BY_NAME
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import domain_similarity, mil_nce, mp_nce, siglip, sup_con
from uniclip_kernels._backend import find
from uniclip_kernels._problem import Inputs, Options

OPS = torch.ops.uniclip_kernels


def rows(m: int = 24, d: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Two domains of m / 2 samples, the embeddings a leaf."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(m, d, generator=generator).to(dtype).requires_grad_()
    half = torch.arange(m) % 2
    return embeddings, torch.arange(m) // 2, half


def tables(dtype: torch.dtype = torch.float32):
    temperature = torch.tensor([[0.1, 0.2], [9.0, 0.3]], dtype=dtype, requires_grad=True)
    offset = torch.tensor([[0.0, 0.1], [9.0, -0.1]], dtype=dtype, requires_grad=True)
    return temperature, offset


def given(objective: str, dtype: torch.dtype, num_domains: int, everything: bool) -> tuple[Inputs, Options]:
    """What the operators take: rows and tables, and exclusions and candidates beside them."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    z, ids, domains = rows(dtype=dtype)
    tau, b = (torch.full((num_domains, num_domains), x, dtype=accumulator, requires_grad=True) for x in (0.2, 0.1))
    mask = ~torch.eye(num_domains, dtype=torch.bool)
    excluded, candidates = None, (None,) * 4
    if everything:
        excluded = ids // 4
        candidates = rows(10, dtype=dtype, seed=2)[0], ids[:10], domains[:10], excluded[:10]
    inputs = Inputs(z, ids, domains, excluded, *candidates, tau, b, torch.ones_like(tau.detach()), mask)
    return inputs, Options(objective, True, False, None, None, "cpu", "")


@pytest.mark.parametrize("num_domains", [2, 17])
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize(
    ("objective", "dtype"),
    [
        ("mp_nce", torch.float32),
        ("sup_con", torch.float64),
        ("mil_nce", torch.bfloat16),
        ("siglip", torch.float16),
        ("mp_nce", torch.bfloat16),
    ],
)
def test_opcheck_of_the_public_operators(objective, dtype, everything, num_domains):
    inputs, options = given(objective, dtype, num_domains, everything)
    arguments = *inputs, everything, *options  # keeps products
    torch.library.opcheck(OPS.contrastive_fwd, arguments)
    loss, _, *saved = (t.detach() for t in OPS.contrastive_fwd(*arguments))
    inputs = (None if t is None else t.detach() for t in inputs)
    backward = torch.ones_like(loss), *inputs, *saved, True, everything, *options
    torch.library.opcheck(OPS.contrastive_bwd, backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck_of_domain_similarity(dtype):
    z = rows(dtype=dtype)[0]
    tau, b = tables(torch.float64 if dtype == torch.float64 else torch.float32)
    x, y = z, rows(10, dtype=dtype, seed=1)[0]
    similarity = (x, y, torch.arange(24) % 2, torch.arange(10) % 2, tau, b, True, False, "cpu", "")
    torch.library.opcheck(OPS.domain_similarity_fwd, similarity)
    s = OPS.domain_similarity_fwd(*similarity).detach()
    inputs = [t.detach() for t in similarity[:6]]
    backward = torch.ones_like(s), s, *inputs, True, True, *similarity[6:]
    torch.library.opcheck(OPS.domain_similarity_bwd, backward)


def test_opcheck_of_the_cpu_primitives(monkeypatch):
    """Each with the arguments that a real call gives it."""
    seen: dict[str, tuple] = {}

    class Recorder:
        def __getattr__(self, name):
            def record(*args):
                seen.setdefault(name, tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args))
                return getattr(OPS, name)(*args)

            return record

    monkeypatch.setattr("uniclip_kernels.cpu._ops", Recorder())
    monkeypatch.setattr(find("cpu"), "bfloat16_products", torch.int16)  # only narrow rows are packed
    z, ids, domains = rows(200, dtype=torch.bfloat16)
    tau, b = tables()
    mp_nce(z, ids, domains, temperature=tau, offset=b, backend="cpu").backward()
    domain_similarity(z, None, domains, temperature=tau, offset=b, backend="cpu").sum().backward()
    assert len(seen) == 9
    for name, args in seen.items():
        torch.library.opcheck(getattr(OPS, name), args)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("objective", [mp_nce, sup_con, mil_nce, siglip])
def test_gradcheck(objective, reduction):
    (z, ids, domains), (candidates, *_) = rows(10, 4, torch.float64), rows(4, 4, torch.float64, seed=1)
    ids[7] = -1
    constant = dict(candidate_sample_ids=torch.arange(4) * 2, candidate_domain_ids=domains[:4], exclude_ids=ids // 2)
    constant |= dict(candidate_exclude_ids=torch.arange(4), reduction=reduction, backend="cpu")
    if objective is not mil_nce:
        constant["weight"] = torch.tensor([[1.0, 0.5], [2.0, 0.0]], dtype=torch.float64)

    def loss(z, candidates, tau, b, alpha):
        options = dict(temperature=tau, offset=b, anchor_weight=alpha, candidates=candidates)
        return objective(z, ids, domains, **options, **constant)

    alpha = torch.linspace(0.5, 1.5, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (z, candidates, *tables(torch.float64), alpha), atol=1e-6)


def test_gradcheck_of_the_similarity():
    x, y = rows(6, 3, torch.float64)[0], rows(5, 3, torch.float64, seed=1)[0]

    def similarity(x, y, tau, b):
        return domain_similarity(
            x, y, torch.arange(6) % 2, torch.arange(5) % 2, temperature=tau, offset=b, backend="cpu"
        )

    assert torch.autograd.gradcheck(similarity, (x, y, *tables(torch.float64)), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_changes_nothing(dtype, backend):
    z, ids, domains = rows(dtype=dtype)

    def loss():
        return mp_nce(z, ids, domains, backend=backend) + domain_similarity(z, backend=backend).square().mean()

    expected = loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = loss()
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, expected)
    # The backward pass belongs outside: within, PyTorch would lower the precision of the reference's own products.
    assert torch.equal(*(torch.autograd.grad(value, z)[0] for value in (under_autocast, expected)))
    if backend == "cpu":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (within,) = torch.autograd.grad(loss(), z)
        assert torch.equal(within, torch.autograd.grad(loss(), z)[0])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    z, ids, domains = rows()
    with context():
        loss = mp_nce(z, ids, domains, backend="cpu")
    assert not loss.requires_grad
    assert torch.equal(loss, mp_nce(z, ids, domains, backend="cpu").detach())


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_partial_requires_grad(wanted):
    z, ids, domains = rows()
    leaves = (z, *tables())

    def gradients(needed):
        used = [leaf.detach().requires_grad_(need) for leaf, need in zip(leaves, needed, strict=True)]
        mp_nce(used[0], ids, domains, temperature=used[1], offset=used[2], backend="cpu").backward()
        return [leaf.grad for leaf in used]

    everything = gradients((True, True, True))
    for need, grad, expected in zip(wanted, gradients(wanted), everything, strict=True):
        assert (grad is not None) == need
        assert not need or torch.equal(grad, expected)


def test_second_derivative_is_a_clear_error():
    z, ids, domains = rows()
    (grad,) = torch.autograd.grad(mp_nce(z, ids, domains, backend="cpu"), z, create_graph=True)
    with pytest.raises(RuntimeError, match="mp_nce has no second derivative"):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(domain_similarity(z, backend="cpu").sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="domain_similarity has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_forward_derivative_is_a_clear_error(argument):
    z, ids, domains = rows()
    leaves = [leaf.detach() for leaf in (z, *tables())]

    def loss(x):
        z, tau, b = (x if i == argument else leaf for i, leaf in enumerate(leaves))
        return mp_nce(z, ids, domains, temperature=tau, offset=b, backend="cpu")

    def similarity(x):
        z, tau, b = (x if i == argument else leaf for i, leaf in enumerate(leaves))
        return domain_similarity(z, None, domains, temperature=tau, offset=b, backend="cpu")

    for function, name in ((loss, "mp_nce"), (similarity, "domain_similarity")):
        for differentiate in (lambda f, x: torch.func.jvp(f, (x,), (x,)), lambda f, x: torch.func.jacfwd(f)(x)):
            with pytest.raises(RuntimeError, match=f"{name} has no forward-mode derivative"):
                differentiate(function, leaves[argument])


@pytest.mark.parametrize("transformed", [torch.func.grad, lambda f: torch.vmap(torch.func.grad(f))])
def test_a_gradient_of_torch_func_is_a_clear_error(transformed):
    z, ids, _ = rows()
    some = torch.stack([z, z]) if transformed is not torch.func.grad else z
    with pytest.raises(RuntimeError, match=r"mp_nce has no torch.func.grad: call it with backend='reference'"):
        transformed(lambda x: mp_nce(x, ids, backend="cpu"))(some)


@pytest.mark.parametrize(
    ("dtype", "operands"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.int16),
    ],
    ids=str,
)
def test_same_input_same_bits_whatever_the_threads(dtype, operands, monkeypatch):
    if operands == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16 instructions")
    monkeypatch.setattr(find("cpu"), "bfloat16_products", operands)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 3, 16):
            torch.set_num_threads(threads)
            z, ids, domains = rows(1300, 100, dtype)
            tau, b = tables(torch.float64 if dtype == torch.float64 else torch.float32)
            mp_nce(z, ids, domains, temperature=tau, offset=b, backend="cpu").backward()
            x = z.detach().requires_grad_()
            s = domain_similarity(x, None, domains, temperature=tau.detach(), backend="cpu")
            s.square().sum().backward()
            results.append((z.grad, tau.grad, b.grad, s.detach(), x.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.fixture
def poisoned():
    """Deterministic mode fills with NaN whatever torch.empty gives."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["rows-65", "empty", "padding", "mask-some-of-five", "larger", "none", "columns-513"])
def test_deterministic_mode_and_poisoned_memory(name, dtype, poisoned):
    case = BY_NAME[name]
    assert_matches(evaluate(case, "cpu", dtype), case, dtype)


def test_the_similarity_in_poisoned_memory(poisoned):
    x, y = torch.randn(65, 33, requires_grad=True), torch.randn(128, 33, requires_grad=True)
    results = []
    for backend in ("cpu", "reference"):
        s = domain_similarity(x, y, backend=backend)
        results.append([s, *torch.autograd.grad(s.square().sum(), (x, y))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_non_finite_rows_show_in_the_loss(bad, dtype):
    z, ids, domains = rows(40, dtype=dtype)
    with torch.no_grad():
        z[3, 2] = bad
    loss = mp_nce(z, ids, domains, backend="cpu")
    loss.backward()
    assert not loss.isfinite()
    s = domain_similarity(z, normalize=False, backend="cpu")
    s.sum().backward()
    assert not s[3].isfinite().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("only_across", [False, True])
def test_non_finite_rows_show_where_they_do_in_float32(bad, only_across, monkeypatch):
    """Fixed point has no NaN of its own: it must come through all the same, and reach no row that it should not."""
    z, ids, domains = rows(300, dtype=torch.bfloat16)
    with torch.no_grad():
        z[7, 5] = bad
    mask = torch.tensor([[not only_across, True], [True, not only_across]])
    results = []
    for operands in (torch.float32, torch.int16):
        monkeypatch.setattr(find("cpu"), "bfloat16_products", operands)
        loss = mp_nce(z, ids, domains, domain_mask=mask, reduction="none", backend="cpu")
        s = domain_similarity(z, backend="cpu")
        grads = [torch.autograd.grad(y, z, torch.ones_like(y))[0] for y in (loss, s)]
        results.append([value.isfinite() for value in (loss, s, *grads)])
    assert results[0][0].any() == only_across
    assert not results[0][1].all()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_flops_are_counted():
    """A multiply-add is two: forward M²D, since pairs are unordered, and three times that backward."""
    m, n, d = 24, 10, 8
    z, ids, domains = rows(m, d)
    y = rows(n, d)[0].detach()

    def counted(function) -> int:
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    loss, s = mp_nce(z, ids, domains), domain_similarity(z, y)
    assert counted(lambda: mp_nce(z, ids, domains)) == m * m * d
    assert counted(loss.backward) == 3 * m * m * d
    assert counted(lambda: domain_similarity(z, y)) == 2 * m * n * d
    assert counted(lambda: s.sum().backward(retain_graph=True)) == 2 * m * n * d
    tau = tables()[0]
    assert counted(lambda: mp_nce(z.detach(), ids, domains, temperature=tau).backward()) == (1 + 1) * m * m * d
    assert counted(lambda: domain_similarity(z, temperature=tau).sum().backward()) == (1 + 2) * 2 * m * m * d


def test_a_candidate_in_each_of_many_domains():
    """More domains than a tile has rows, in fewer rows than domains."""
    z, ids = torch.randn(3000, 8), torch.arange(3000) // 2
    options = dict(candidates=torch.randn(40, 8), candidate_sample_ids=torch.arange(40))
    options |= dict(candidate_domain_ids=torch.arange(40), temperature=torch.full((40, 40), 0.5))
    losses = [mp_nce(z, ids, ids % 40, backend=b, **options) for b in ("cpu", "reference")]
    torch.testing.assert_close(*losses)
