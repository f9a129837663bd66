"""Rung 7, on a GPU: the grid, and what holds on a device alone: graphs, streams, no waiting, several devices, large offsets.

`make gpu` runs it. UNICLIP_GPU_DRY_RUN=1 runs with the CPU backend what does not need a GPU, so that no test here has never
been run.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests import test_domain_similarity as similarity
from tests.evaluate import assert_matches, evaluate
from tests.objective_cases import BY_NAME, GRID
from tests.test_citizenship import rows, tables
from uniclip_kernels import MPNCELoss, backends, domain_similarity, mp_nce
from uniclip_kernels._backend import find

DRY = os.environ.get("UNICLIP_GPU_DRY_RUN") == "1"
DEVICE = "cpu" if DRY else "cuda"
BACKENDS = ("cpu",) if DRY else ("triton", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DRY and not torch.cuda.is_available(), reason="there is no CUDA or ROCm device"),
]
on_a_real_gpu = pytest.mark.skipif(DRY, reason="a dry run has no streams, graphs or devices")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the deterministic mode; PyTorch reads it once
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """The ``cuda`` backend is left out where its extension was not built; a built one that cannot run is a failure."""
    if request.param == "cuda" and importlib.util.find_spec("uniclip_kernels._cuda") is None:
        pytest.skip(backends()["cuda"])
    return request.param


def inputs(m: int = 600, d: int = 40, dtype: torch.dtype = torch.bfloat16, device: str = DEVICE, seed: int = 0):
    """Embeddings, temperature and offset, all leaves, then sample ids and domain ids."""
    z, *ids = rows(m, d, dtype, seed)
    leaves = [t.detach().to(device).requires_grad_() for t in (z, *tables())]
    return leaves, [t.to(device) for t in ids]


def step(leaves, ids, backend: str) -> list[torch.Tensor]:
    """The loss and its gradients."""
    loss = mp_nce(leaves[0], *ids, temperature=leaves[1], offset=leaves[2], backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_same_bits(got, expected) -> None:
    for place, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(a.cpu(), b.cpu()), f"tensor {place} differs"


@pytest.mark.parametrize("case", GRID[:: 16 if DRY else 1], ids=repr)
@every_dtype
def test_the_grid(backend, dtype, case):
    assert_matches(evaluate(case, backend, dtype, DEVICE), case, dtype)


@pytest.mark.parametrize("name", list(similarity.CASES)[:: 6 if DRY else 1])
@every_dtype
def test_domain_similarity_on_its_cases(backend, dtype, name):
    def on_device(*tensors, temperature, offset, normalize):
        tensors = [t.to(DEVICE) for t in tensors]
        tables = {"temperature": temperature.to(DEVICE), "offset": offset.to(DEVICE)}
        return domain_similarity(*tensors, **tables, normalize=normalize, backend=backend).cpu()

    case = similarity.CASES[name]
    similarity.assert_matches(similarity.differentiate(case, dtype, on_device), case, dtype)


@pytest.mark.parametrize(("m", "d"), [(3000, 40), (1700, 512), (900, 1100)])
@every_dtype
def test_many_rectangles(backend, m, d, dtype, monkeypatch):
    monkeypatch.setattr(find(backend), "workspace_bytes", 512 * 512 * dtype.itemsize)
    (z, *tables), ids = inputs(m, d, dtype)
    exact = [t.detach().double().requires_grad_() for t in (z, *tables)]
    expected = step(exact, ids, "reference")
    loss, grad, *_ = step([z, *tables], ids, backend)
    rtol = 3e-6 if dtype == torch.float32 else 1e-2  # of 16-bit rows and H, relative to the norm of the gradient
    torch.testing.assert_close(loss.double(), expected[0], rtol=rtol, atol=0)
    assert (grad - expected[1]).norm() < rtol * expected[1].norm()


@pytest.mark.parametrize("mask_is_known", [True, False])
def test_masked_pairs_of_ids_that_the_host_does_not_know_are_not_multiplied(backend, mask_is_known, monkeypatch):
    used, multiplied = find(backend), []
    monkeypatch.setattr(used, "workspace_bytes", 512 * 512 * 4)
    monkeypatch.setattr(used, "overhead", 0)
    accumulate = used.accumulate

    def counted(out, a, b):
        multiplied.append(len(out) * len(b))
        accumulate(out, a, b)

    monkeypatch.setattr(used, "accumulate", counted)
    (z, temperature, offset), _ = inputs(4096, 40, torch.float32)
    mask = torch.tensor([[False, True], [True, False]], device="cpu" if mask_is_known else DEVICE)
    ids = torch.arange(4096, device=DEVICE)
    given = dict(temperature=temperature[:2, :2], offset=offset[:2, :2], domain_mask=mask)
    grad = torch.autograd.grad(mp_nce(z, ids // 2, ids % 2, **given, backend=backend), z)[0]
    assert sum(multiplied) == 2 * 2048**2
    exact = z.detach().double().requires_grad_()
    given = {name: table.detach().to(DEVICE) for name, table in given.items()}
    expected = torch.autograd.grad(mp_nce(exact, ids // 2, ids % 2, **given, backend="reference"), exact)[0]
    assert (grad - expected).norm() < 3e-6 * expected.norm()


@pytest.mark.parametrize("name", ["rows-65", "empty", "padding", "mask-some-of-five", "larger", "none", "columns-513"])
@every_dtype
def test_deterministic_mode_and_poisoned_memory(backend, dtype, name):
    torch.use_deterministic_algorithms(True)
    try:
        assert_matches(evaluate(BY_NAME[name], backend, dtype, DEVICE), BY_NAME[name], dtype)
    finally:
        torch.use_deterministic_algorithms(False)


@every_dtype
def test_same_input_same_bits(backend, dtype):
    expected = step(*inputs(3000, 136, dtype), backend)
    for _ in range(3):
        assert_same_bits(step(*inputs(3000, 136, dtype), backend), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_dtype
def test_non_finite_rows_show_in_the_loss(backend, dtype, bad):
    leaves, ids = inputs(dtype=dtype)
    with torch.no_grad():
        leaves[0][3, 2] = bad
    assert not step(leaves, ids, backend)[0].isfinite()
    s = domain_similarity(leaves[0], normalize=False, backend=backend)
    s.sum().backward()
    assert not s[3].isfinite().any()


@every_dtype
def test_autocast_changes_nothing(backend, dtype):
    leaves, ids = inputs(dtype=dtype)
    expected = step(leaves, ids, backend)
    s = domain_similarity(leaves[0], backend=backend)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert_same_bits(step(leaves, ids, backend), expected)
        assert_same_bits([domain_similarity(leaves[0], backend=backend)], [s])


def test_compiles_once_for_every_number_of_rows(backend):
    criterion = MPNCELoss(backend=backend).to(DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: criterion(*args) * 2, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for m in (24, 40, 200, 66):
            (z, *_), ids = inputs(m)
            loss = compiled(z, *ids)
            got = torch.autograd.grad(loss, z)
            assert_same_bits(got, torch.autograd.grad(criterion(z, *ids) * 2, z))


class _Calls(TorchDispatchMode):
    """Remembers the arguments of the public operators."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.startswith(("uniclip_kernels::contrastive", "uniclip_kernels::domain_similarity")):
            self.arguments[function] = args
        return function(*args, **(kwargs or {}))


@every_dtype
def test_opcheck(backend, dtype):
    """With the arguments that real calls give."""
    pytest.importorskip("expecttest", reason="torch.library.opcheck needs expecttest")
    (z, tau, b), (ids, domains) = inputs(60, 8, dtype)
    with _Calls() as calls:
        step([z, tau, b], [ids, domains], backend)
        s = domain_similarity(z, None, domains, temperature=tau, offset=b, backend=backend)
        torch.autograd.grad(s.sum(), (z, tau, b))
    assert len(calls.arguments) == 4
    for function, arguments in calls.arguments.items():
        forward = function._schema.name.endswith("_fwd")
        leaves = [
            a.detach().requires_grad_(forward and a.is_floating_point()) if isinstance(a, torch.Tensor) else a
            for a in arguments
        ]
        torch.library.opcheck(function, leaves)


@on_a_real_gpu
def test_a_step_never_waits_for_the_device(backend):
    leaves, ids = inputs()
    step(leaves, ids, backend)  # compiles, tunes
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(leaves, ids, backend)
        domain_similarity(leaves[0], temperature=leaves[1], x_domain_ids=ids[1], backend=backend).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_real_gpu
@every_dtype
def test_a_step_in_a_cuda_graph(backend, dtype):
    leaves, ids = inputs(dtype=dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(leaves, ids, backend)  # compiles, tunes
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(leaves, ids, backend)
    for seed in (1, 2):
        others, _ = inputs(dtype=dtype, seed=seed)
        other_ids = [torch.roll(ids[0], seed), ids[1].flip(0)]
        with torch.no_grad():
            for place, value in zip([*leaves, *ids], [*others, *other_ids], strict=True):
                place.copy_(value)
        graph.replay()
        assert_same_bits(results, step(others, other_ids, backend))


@on_a_real_gpu
def test_on_another_stream(backend):
    """The inputs become what they are on that stream, late: a kernel on another one would read zeros."""
    leaves, ids = inputs()
    expected = step(leaves, ids, backend)
    late = torch.zeros_like(leaves[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(leaves[0].detach())
        got = step([late.requires_grad_(), *leaves[1:]], ids, backend)
    stream.synchronize()
    assert_same_bits(got, expected)


@on_a_real_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one device")
def test_on_a_device_that_is_not_the_current_one(backend):
    assert_same_bits(step(*inputs(device="cuda:1"), backend), step(*inputs(device="cuda:0"), backend))
    assert torch.cuda.current_device() == 0


@pytest.fixture
def much_memory():
    """36 GiB of the device for one test at a time, as others may run beside it in processes of their own."""
    with Path(tempfile.gettempdir(), "uniclip_gpu_memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if torch.cuda.mem_get_info()[0] < 36 << 30:
            pytest.skip("needs 36 GiB")
        yield
        torch.cuda.empty_cache()


@on_a_real_gpu
@pytest.mark.parametrize("what", ["input", "output"])
def test_offsets_beyond_32_bits(backend, what, much_memory):
    x, y = ((1 << 19) + 300, 2) if what == "input" else (1 << 16, (1 << 15) + 300)  # rows
    d = 4096 if what == "input" else 64
    x, y = (torch.randn(m, d, device="cuda", dtype=torch.bfloat16) for m in (x, y))
    x.requires_grad_(what == "input")
    s = domain_similarity(x, y, temperature=1.0, backend=backend)
    last = x.detach()[-200:].clone().requires_grad_()
    expected = F.normalize(last.float(), dim=1) @ F.normalize(y.float(), dim=1).T
    torch.testing.assert_close(s[-200:], expected, rtol=0, atol=0.02)
    if what == "input":
        s.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(x.grad[-200:], last.grad, rtol=0.05, atol=1e-4)
