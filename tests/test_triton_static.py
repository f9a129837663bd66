"""The Triton kernels compiled ahead of time for parts that are not here: registers, spills, tensor cores, shared memory."""

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.emulation import aot
from uniclip_kernels.triton.similarity_grad import similarity_grad_kernel
from uniclip_kernels.triton.similarity_lse import similarity_lse_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHARED_LIMIT = {"80": 163 << 10, "90": 227 << 10, "100": 227 << 10, "120": 99 << 10}
VARIANTS = [(kernel, False) for kernel in aot.TILE_KERNELS] + [(similarity_grad_kernel, True)]

#: float32 tiles on the diagonal, on sm_100 alone: Triton computes the gradient once for each of its two layouts there.
KNOWN_SPILLS = {(similarity_grad_kernel, True, "100", torch.float32)}


def assert_as_planned(code: aot.Facts, arch: str) -> None:
    assert not code.spills(), f"stack of {code.stack} bytes, {code.counts['STL']} STL, {code.counts['LDL']} LDL"
    assert code.counts[aot.TENSOR_CORE[arch]] > 0, f"no {aot.TENSOR_CORE[arch]}"
    assert code.shared <= SHARED_LIMIT[arch], f"{code.shared} bytes of shared memory"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", aot.TENSOR_CORE)
@pytest.mark.parametrize(("kernel", "diagonal"), VARIANTS, ids=lambda v: getattr(v, "__name__", f"diagonal={v}"))
def test_machine_code(kernel, diagonal, arch, dtype, request):
    if (kernel, diagonal, arch, dtype) in KNOWN_SPILLS:
        request.node.add_marker(pytest.mark.xfail(strict=True, reason="spills"))
    assert_as_planned(aot.facts(aot.compile_tile_kernel(kernel, arch, dtype, diagonal=diagonal)), arch)


@pytest.mark.parametrize("arch", ["80", "90", "100"])
@pytest.mark.parametrize("kernel", [similarity_lse_kernel, similarity_grad_kernel])
def test_two_programs_share_a_multiprocessor(kernel, arch):
    code = aot.facts(aot.compile_tile_kernel(kernel, arch, torch.bfloat16))
    assert 2 * code.warps * 32 * code.registers <= 65536
    assert 2 * (code.shared + 1024) <= SHARED_LIMIT[arch] + 1024


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", [similarity_lse_kernel, similarity_grad_kernel])
def test_rocm(kernel, dtype):
    code = aot.compile_tile_kernel(kernel, "gfx942", dtype).asm["amdgcn"]
    assert "v_mfma" in code
    assert ".private_segment_fixed_size: 0" in code


def test_planted_spill_is_seen():
    code = aot.facts(aot.compile_tile_kernel(similarity_grad_kernel, "80", torch.bfloat16, maxnreg=64))
    with pytest.raises(AssertionError, match="stack of"):
        assert_as_planned(code, "80")


@triton.jit
def _product_without_tensor_cores(x, y, out):
    lane = tl.arange(0, 32)
    a = tl.load(x + lane[:, None] * 32 + lane[None, :])
    b = tl.load(y + lane[:, None] * 32 + lane[None, :])
    tl.store(out + lane[:, None] * 32 + lane[None, :], tl.dot(a, b, input_precision="ieee"))


@pytest.mark.parametrize("arch", aot.TENSOR_CORE)
def test_planted_loop_without_tensor_cores_is_seen(arch):
    source = ASTSource(_product_without_tensor_cores, dict.fromkeys(("x", "y", "out"), "*fp32"), {})
    code = aot.facts(triton.compile(source, target=GPUTarget("cuda", int(arch), 32)))
    with pytest.raises(AssertionError, match="no "):
        assert_as_planned(code, arch)
