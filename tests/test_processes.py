"""The CPU backend among threads and processes, with the instructions of other processors, and the memory that it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.test_citizenship import rows
from uniclip_kernels import mp_nce


def run(program: str, *arguments: str, **environment: str) -> str:
    """What a fresh interpreter prints that runs ``program``; a failure shows what it complained of."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("intra_op", [1, 2])
def test_python_threads_do_not_disturb_each_other(intra_op):
    inputs = [rows(400, 16, seed=seed) for seed in range(4)]
    expected = [torch.autograd.grad(mp_nce(*i, backend="cpu"), i[0])[0] for i in inputs]
    results: list = [None] * 4

    def work(k: int) -> None:
        torch.set_num_threads(intra_op)
        for _ in range(5):
            results[k] = torch.autograd.grad(mp_nce(*inputs[k], backend="cpu"), inputs[k][0])[0]

    before = torch.get_num_threads()
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    torch.set_num_threads(before)
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)


class Losses(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, k: int) -> torch.Tensor:
        return mp_nce(*rows(300, seed=k), reduction="none", backend="cpu").detach()


def test_workers_of_a_data_loader(two_threads):
    losses = Losses()
    expected = torch.stack([losses[k] for k in range(6)])  # the parent's threads have run before the fork
    loader = DataLoader(losses, batch_size=3, num_workers=2, multiprocessing_context="fork", timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=1e-6, atol=1e-6)


FORK = """
import torch
from uniclip_kernels import mp_nce

def differentiate(queue=None):
    torch.manual_seed(0)
    torch.set_num_threads(1 if queue else 2)  # as DataLoader does: OpenMP's threads are lost in a fork
    z = torch.randn(300, 16, requires_grad=True)
    loss = mp_nce(z, torch.arange(300) // 2, backend="cpu")
    if queue is None:
        return loss.item()
    loss.backward()  # PyTorch allows this where the parent has not yet done it
    queue.put((loss.item(), z.grad.isfinite().all().item()))

expected = differentiate()
context = torch.multiprocessing.get_context("fork")
queue = context.SimpleQueue()
process = context.Process(target=differentiate, args=(queue,))
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
loss, finite = queue.get()
assert abs(loss - expected) < 1e-5 and finite
"""


def test_a_plain_fork():
    run(FORK)


ANY_PROCESSOR = """
import sys, torch
from tests.cases import BY_NAME
from tests.evaluate import assert_matches, evaluate
from uniclip_kernels import _C
from uniclip_kernels._backend import find
torch.set_num_threads(1)
assert sys.argv[1] in ("any", _C.cpu_instruction_set()), _C.cpu_instruction_set()
for name in sys.argv[2:]:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert_matches(evaluate(BY_NAME[name], "cpu", dtype), BY_NAME[name], dtype)
    find("cpu").bfloat16_products = torch.int16
    assert_matches(evaluate(BY_NAME[name], "cpu", torch.bfloat16), BY_NAME[name], torch.bfloat16)
"""
TELLING = ["rows-65", "columns-17", "columns-513", "mask-some-of-five", "temperatures-mixed", "zero-rows", "strided"]


@pytest.mark.parametrize(("capability", "name"), [("default", "baseline"), ("avx2", "avx2"), ("avx512", "avx512")])
def test_every_instruction_set_of_this_processor(capability, name):
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if name != "baseline" and name not in flags.replace("avx512bw", "avx512"):
        pytest.skip(f"the processor has no {name}")
    run(ANY_PROCESSOR, name, *TELLING, ATEN_CPU_CAPABILITY=capability)


def test_what_fresh_memory_holds_does_not_matter():
    """glibc fills what malloc gives with a byte: 0x7f is a huge number in every dtype."""
    run(ANY_PROCESSOR, "any", *TELLING, MALLOC_PERTURB_=str(0x7F ^ 0xFF))


IMPORTED_AGAIN = """
import sys, torch

def step():
    import uniclip_kernels
    torch.manual_seed(0)
    z = torch.randn(40, 8, requires_grad=True)
    loss = uniclip_kernels.mp_nce(z, torch.arange(40) // 2, backend="cpu")
    loss.backward()
    x = z.detach().requires_grad_()
    s = uniclip_kernels.domain_similarity(x, backend="cpu")
    s.square().sum().backward()
    return uniclip_kernels, (loss.detach(), z.grad, s.detach(), x.grad)

first, expected = step()
z, ids = torch.randn(30, 8, requires_grad=True), torch.arange(30) // 2
of_the_first = first.mp_nce(z, ids)
(grad,) = torch.autograd.grad(of_the_first, z, retain_graph=True)
for _ in range(2):
    for name in [name for name in sys.modules if name.partition(".")[0] == "uniclip_kernels"]:
        del sys.modules[name]
    again, results = step()
    assert again is not first
    assert all(torch.equal(*pair) for pair in zip(results, expected))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        assert torch.equal(first.mp_nce(z, ids), of_the_first)
    assert counter.get_total_flops() == 30 * 30 * 8
    assert torch.equal(*torch.autograd.grad(of_the_first, z, retain_graph=True), grad)
compiled = torch.compile(lambda z: again.mp_nce(z, ids), fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(z), of_the_first)
"""


def test_forgotten_and_imported_again():
    run(IMPORTED_AGAIN)


UNCHECKED = """
import torch
from uniclip_kernels import domain_similarity, mp_nce
torch.set_num_threads(1)
for k, m in [(2, 200), (40, 200), (17, 1200)]:
    tau, b = (torch.full((k, k), x, requires_grad=True) for x in (0.5, 0.25))
    for bad in (k, k + 5, 127, -1, 2**40, -(2**40), 2**63 - 1, -(2**63)):
        z = torch.randn(m, 8, requires_grad=True)
        domain_ids = torch.arange(m) % k
        domain_ids[::3] = bad
        loss = mp_nce(z, torch.arange(m) // 2, domain_ids, temperature=tau, offset=b, backend="cpu")
        s = domain_similarity(z, None, domain_ids, temperature=tau, offset=b, backend="cpu")
        (loss + s.square().mean()).backward()
        # Every entry of the tables is alike: whichever is read, these are the values.
        torch.testing.assert_close(loss, mp_nce(z, torch.arange(m) // 2, temperature=0.5, backend="reference"))
        torch.testing.assert_close(s, domain_similarity(z, temperature=0.5, offset=0.25, backend="reference"))
        assert all(x.grad.isfinite().all() for x in (z, tau, b))
        assert all((x.grad.tril(-1) == 0).all() for x in (tau, b))
"""


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_domain_ids_that_were_not_checked_read_nothing_out_of_bounds(byte):
    run(UNCHECKED, UNICLIP_CHECK_VALUES="0", MALLOC_PERTURB_=str(byte ^ 0xFF))


EXTRA_MEMORY = """
import re, sys, torch
from pathlib import Path
from uniclip_kernels import mp_nce, stack_views

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def extra(n, d, k):
    z, ids, domains = stack_views([torch.randn(n, d)] * 3, [0, 0, 1])
    z.requires_grad_()
    if k > 2:
        domains = torch.arange(3 * n) % k
    tau, b = (torch.full((k, k), x, requires_grad=True) for x in (0.1, 0.0))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    mp_nce(z, ids, domains, temperature=tau, offset=b, backend="cpu").backward()
    return status("VmHWM") - before

n, d, k = map(int, sys.argv[1:])
torch.set_num_threads(2 if k == 2 else 1)  # PyTorch's own wait for each other where the processor is shared
extra(64, 32, k=min(k, 17))
print(extra(n, d, k))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("n", "d", "k"), [(2048, 128, 2), (512, 8192, 2), (1200, 64, 100), (333, 64, 200), (333, 64, 1000)]
)
def test_extra_memory_is_linear(n, d, k):
    """At most 4 M D floats and 64 MB: an M x M matrix takes 151 MB in the first case, an M x D one 50 MB in the second."""
    # Else the C library keeps some of what was freed, 15 MB more or less from run to run.
    found = run(EXTRA_MEMORY, *map(str, (n, d, k)), MALLOC_MMAP_THRESHOLD_=str(1 << 20))
    assert int(found) <= 4 * (3 * n) * d * 4 + 64e6
