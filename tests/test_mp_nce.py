"""Rung 1: values and gradients of the CPU backend, and of the reference in each dtype, over the shared grid."""

import pytest
import torch

from tests.cases import mask_without
from tests.evaluate import assert_matches, evaluate
from tests.objective_cases import BY_NAME, GRID, some
from uniclip_kernels import mp_nce
from uniclip_kernels._backend import find
from uniclip_kernels._layout import domains_apart

LOW = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*LOW, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GRID, ids=repr)
def test_cpu_on_the_grid(case, dtype):
    assert_matches(evaluate(case, "cpu", dtype), case, dtype)


@pytest.mark.parametrize("operands", [torch.float32, torch.bfloat16, torch.int16], ids=str)
@pytest.mark.parametrize("case", some(GRID, 3), ids=repr)
def test_cpu_with_any_operands_of_bfloat16_products(case, operands, monkeypatch):
    if operands == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16 instructions")
    monkeypatch.setattr(find("cpu"), "bfloat16_products", operands)
    assert_matches(evaluate(case, "cpu", torch.bfloat16), case, torch.bfloat16)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("case", some(GRID, 4), ids=repr)
def test_reference_in_low_precision(case, dtype):
    assert_matches(evaluate(case, "reference", dtype), case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", some([case for case in GRID if len(case.embeddings) > 64], 2), ids=repr)
def test_cpu_in_small_rectangles(case, dtype, monkeypatch):
    monkeypatch.setattr(find("cpu"), "workspace_bytes", 64 * 64 * dtype.itemsize)
    assert_matches(evaluate(case, "cpu", dtype), case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_products_are_those_computed_again(dtype, monkeypatch):
    """All of them kept, those of five rectangles, none: the same bits, also when the gradient is taken twice."""
    results = []
    for kept_bytes in (1 << 20, 5 * 64 * 64 * 4, 0):
        monkeypatch.setattr(find("cpu"), "workspace_bytes", 64 * 64 * dtype.itemsize)
        monkeypatch.setattr(find("cpu"), "kept_bytes", kept_bytes)
        z = BY_NAME["larger"].rows(dtype).requires_grad_()
        loss = mp_nce(z, BY_NAME["larger"].sample_ids, BY_NAME["larger"].domain_ids, **BY_NAME["larger"].options)
        results += [(loss, *torch.autograd.grad(loss, z, retain_graph=True)) for _ in range(2)]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("operands", [torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("exponent", [-90, 90])
def test_weights_of_any_size(operands, exponent, monkeypatch):
    """A power of two is a factor of the loss and its gradient to the last bit."""
    monkeypatch.setattr(find("cpu"), "bfloat16_products", operands)
    z, ids = BY_NAME["larger"].rows(torch.bfloat16).requires_grad_(), BY_NAME["larger"].sample_ids
    losses = [mp_nce(z, ids, weight=weight, backend="cpu") for weight in (1.0, 2.0**exponent)]
    grads = [torch.autograd.grad(loss, z)[0] for loss in losses]
    assert torch.equal(losses[0] * 2.0**exponent, losses[1])
    assert grads[0].count_nonzero() > 0
    assert torch.equal(grads[0] * 2.0**exponent, grads[1])


def offset_gradient(m, num_domains, dtype, **options):
    """Of random rows: τ times the gradient of b, in float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tau = 0.05 + torch.rand(num_domains, num_domains, dtype=wide)
    b = (0.2 * torch.randn(num_domains, num_domains, dtype=wide)).requires_grad_()
    ids, domains = torch.randint(m // 3, (m,)), torch.randint(num_domains, (m,))
    z = torch.randn(m, 24).to(dtype)
    mp_nce(z, ids, domains, temperature=tau, offset=b, backend="cpu", **options).backward()
    return tau.double() * b.grad.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_domains", [1, 2, 17, 40])
def test_an_offset_on_which_the_loss_does_not_depend(num_domains, dtype):
    """Since one pair of domains is compared, all similarities move by one number."""
    mask = torch.zeros(num_domains, num_domains, dtype=torch.bool)
    mask[0, -1] = mask[-1, 0] = True
    for _ in range(5):
        assert offset_gradient(300, num_domains, dtype, domain_mask=mask).count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_domains", [2, 3, 20])
def test_gradients_of_offsets_cancel(num_domains, dtype):
    """Where all similarities move by one number the loss stays as it is: to the rounding of the gradients themselves."""
    weight = 0.2 + torch.rand(num_domains, num_domains)
    for mask in (None, mask_without(num_domains, (1, 1))):
        terms = offset_gradient(300, num_domains, dtype, weight=weight, domain_mask=mask)
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        assert terms.abs().max() > 1e-3
        assert terms.sum().abs() <= 2 * eps * terms.abs().sum()


def test_the_cpu_backend_is_the_default_on_the_cpu():
    z, ids = torch.randn(40, 8), torch.arange(40) // 2
    assert torch.equal(mp_nce(z, ids), mp_nce(z, ids, backend="cpu"))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_only_image_to_text_pairs_is_the_clip_loss(backend):
    n, tau = 50, 0.07
    z = torch.randn(2 * n, 16)
    image, text = torch.nn.functional.normalize(z, dim=1).chunk(2)
    logits = image @ text.T / tau
    target = torch.arange(n)
    clip = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    mask = torch.tensor([[False, True], [True, False]])
    domains = torch.arange(2 * n) // n
    loss = mp_nce(z, target.repeat(2), domains, temperature=tau, domain_mask=mask, backend=backend)
    torch.testing.assert_close(loss, clip)


@pytest.mark.parametrize(("m", "d", "k"), [(3000, 40, 3), (1700, 512, 3), (900, 1100, 3), (1500, 40, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rectangles(m, d, k, dtype):
    """More rows than one rectangle of the gradient holds, more columns than one product takes at a time, and many domains each of
    which has tiles of its own."""
    assert domains_apart(m, k, find("cpu").block)
    z = torch.randn(m, d).to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    ids, domains = torch.randint(m // 3, (m,)), torch.randint(k, (m,))
    tau = torch.rand(k, k) * 0.3 + 0.1
    loss = mp_nce(z, ids, domains, temperature=tau, backend="cpu")
    expected = mp_nce(exact, ids, domains, temperature=tau.double(), backend="reference")
    loss.backward(), expected.backward()
    rtol = 3e-6 if dtype == torch.float32 else 1e-2  # of bfloat16 rows and H, relative to the norm of the gradient
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=0)
    assert (z.grad - exact.grad).norm() < rtol * exact.grad.norm()
