"""`python -m uniclip_kernels.info` and `backends()` tell what is built and why a backend is not usable."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from uniclip_kernels import _C, __version__, _backend, _extension, backends, cuda, info, mp_nce

SIGNATURES = (
    "void uniclip::cuda::similarity_lse_kernel<uniclip::cuda::BFloat16>(uniclip::cuda::BFloat16::Element const*, int)",
    "void uniclip::cuda::gather_rows_kernel<__nv_bfloat16>(__nv_bfloat16 const*, long)",
    "uniclip::cuda::merge_lse_kernel(float*, float const*, long, int)",
)
OF_SM_90A = [f"void uniclip::cuda::hopper::hopper_lse_kernel<__nv_bfloat16, {b}>(float*)" for b in ("true", "false")]
EXTENSION = SimpleNamespace(
    architectures=[80, 90, 100, 120],
    cuda_version="13.0",
    torch_version="2.14.1",
    kernels=[(s, a, 40 + a, 16 if a == 120 else 0) for s in SIGNATURES for a in (80, 90, 100, 120)]
    + [(s, 90, registers, 0) for s, registers in zip(OF_SM_90A, (168, 99), strict=True)],
)


def test_the_report():
    command = [sys.executable, "-m", "uniclip_kernels.info"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    facts = {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words}
    assert facts["uniclip-kernels"] == __version__
    assert torch.__version__ in facts["torch"]
    assert facts["processor"].startswith(f"{_C.cpu_instruction_set()} vectors")
    for name, reason in backends().items():
        assert facts[name] == ("usable" if reason is None else " ".join(reason.split()))


@pytest.fixture
def built(monkeypatch):
    """As if the CUDA extension were built."""
    monkeypatch.setattr(_extension, "load", lambda name: EXTENSION if name == "_cuda" else _C)


def test_the_report_of_the_cuda_kernels(built):
    report = info.describe()
    assert "for sm_80, sm_90, sm_100, sm_120 and newer ones" in report
    rows = [line.split() for line in report.splitlines()]
    assert ["similarity_lse,", "bfloat16", "120", "130", "140", "160+16"] in rows
    assert ["gather_rows,", "bfloat16", "120", "130", "140", "160+16"] in rows
    assert ["merge_lse", "120", "130", "140", "160+16"] in rows
    assert ["hopper_lse,", "bfloat16", "-", "168", "-", "-"] in rows


def test_an_extension_that_was_not_built(monkeypatch):
    def missing(name):
        raise ImportError(f"{name} was not built")

    monkeypatch.setattr(_extension, "load", missing)
    # What is found out here is not to be remembered: the tests after it would run without the backend.
    monkeypatch.setattr(_backend, "_load", _backend._load.__wrapped__)
    report = info.describe()
    assert "cpu extension    _C was not built" in report
    assert "cuda extension   _cuda was not built" in report
    assert cuda.CUDABackend().unusable() == "_cuda was not built"


USABLE = {(8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)}


@pytest.mark.parametrize("capability", sorted({(7, 5), (11, 0)} | USABLE))
def test_devices_that_the_kernels_run_on(built, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    built_for = "it was built for compute capability 8.0, 9.0, 10.0, 12.0 and newer, and the device has "
    reason = None if capability in USABLE else built_for + "{}.{}".format(*capability)
    assert cuda.CUDABackend().unusable() == reason


def test_cuda_without_a_device(built, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert cuda.CUDABackend().unusable() == "there is no CUDA device"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert cuda.CUDABackend().unusable() == f"it was built for CUDA 13.0, and torch {torch.__version__} for 12.8"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.CUDABackend().unusable() == f"torch {torch.__version__} was built without CUDA"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("there is no CUDA device", "backend 'cuda' is not usable here: there is no CUDA device"),
        (None, "backend 'cuda' needs tensors on cuda, got cpu"),
    ],
)
def test_the_cuda_backend_and_tensors_on_the_cpu(monkeypatch, reason, message):
    monkeypatch.setattr(_backend, "_load", lambda name: (cuda.BACKEND, reason))
    with pytest.raises(ValueError, match=message):
        mp_nce(torch.eye(4), torch.tensor([0, 0, 1, 1]), backend="cuda")
