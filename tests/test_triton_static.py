"""The Triton kernels compiled ahead of time for parts that are not here: registers, spills, tensor cores, shared memory."""

import importlib
import pkgutil
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import uniclip_kernels.triton
from tests.emulation import aot
from tests.emulation.machine_code import TENSOR_CORE, assert_as_planned, assert_multiplies, assert_two_programs
from tests.objective_cases import some

KERNELS = aot.TILE_KERNELS + aot.ROW_KERNELS + aot.SUM_KERNELS
#: float16 is to the compiler what bfloat16 is.
IN_16_BITS = [(name, torch.bfloat16) for name in KERNELS if name not in aot.SUM_KERNELS]
IN_FLOAT32 = [(name, torch.float32) for name in KERNELS]
LSE, GRAD, MATRIX = "similarity_lse_kernel", "similarity_grad_kernel", "similarity_matrix_kernel"
OPERANDS_IN_REGISTERS = ("80", "120")


def test_no_kernel_is_forgotten():
    package = uniclip_kernels.triton
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    written = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    launched = {launch.name for launch in aot.launches("80", torch.bfloat16)}
    assert launched == set(KERNELS)
    assert written == {name.split()[0] for name in KERNELS}


#: All for sm_90 in 16 bits, and some of the rest.
BUILDS = [(*build, "90") for build in IN_16_BITS]
BUILDS += some([(*build, arch) for arch in TENSOR_CORE if arch != "90" for build in IN_16_BITS], 5)
BUILDS += some([(*build, arch) for arch in TENSOR_CORE for build in IN_FLOAT32], 6)


@pytest.mark.parametrize(("name", "dtype", "arch"), BUILDS, ids=str)
def test_machine_code(name, dtype, arch):
    code = aot.code(aot.compile_kernel(name, arch, dtype))
    assert_as_planned(code, arch)
    if name in aot.TILE_KERNELS:
        assert_multiplies(code, TENSOR_CORE[arch], 512)
    alone = name == MATRIX or (name.startswith("positives") and arch in OPERANDS_IN_REGISTERS)
    if name in aot.TILE_KERNELS and not alone and dtype != torch.float32:
        assert_two_programs(code, arch)


WIDTHS = [(name, d, arch) for name in (LSE, GRAD, "positives_grad_kernel") for d in (64, 4096) for arch in TENSOR_CORE]


@pytest.mark.parametrize(("name", "d", "arch"), some(WIDTHS, 3))
def test_few_and_many_columns(name, d, arch):
    code = aot.code(aot.compile_kernel(name, arch, torch.bfloat16, d))
    assert_as_planned(code, arch)
    assert_multiplies(code, TENSOR_CORE[arch], d)


@pytest.mark.parametrize("name", some(KERNELS, 3))
def test_rocm(name):
    code = aot.compile_kernel(name, "gfx942", torch.bfloat16).asm["amdgcn"]
    assert ".private_segment_fixed_size: 0" in code
    assert "v_mfma" in code or name not in aot.TILE_KERNELS


@pytest.mark.parametrize("arch", ["90", "gfx942"])
def test_no_compilation_when_the_number_of_rows_changes(arch):
    keys = defaultdict(set)
    for m in (300, 301, 512, 1000):
        for launch in aot.launches(arch, torch.bfloat16, m=m):
            keys[launch.name].add(launch.key(arch))
    assert {name: len(of_name) for name, of_name in keys.items()} == dict.fromkeys(KERNELS, 1)


def test_a_compilation_for_other_columns_is_seen():
    one, other = ({launch.key("90") for launch in aot.launches("90", torch.bfloat16, d)} for d in (512, 576))
    assert one != other


def test_planted_spill_is_seen():
    code = aot.code(aot.compile_kernel(GRAD, "80", torch.bfloat16, maxnreg=64))
    with pytest.raises(AssertionError, match="stack of"):
        assert_as_planned(code, "80")


@triton.jit
def _product(x, y, out, SIDE: tl.constexpr, TIMES: tl.constexpr, PRECISION: tl.constexpr):
    lane = tl.arange(0, SIDE)
    at = lane[:, None] * SIDE + lane[None, :]
    dots = tl.zeros((SIDE, SIDE), tl.float32)
    for _ in tl.static_range(TIMES):
        dots = tl.dot(tl.load(x + at), tl.load(y + at), dots, input_precision=PRECISION)
        x += SIDE
        y += SIDE
    tl.store(out + at, dots)


def _compiled(arch: str, side: int, times: int, dtype: str, precision: str):
    constants = {"SIDE": side, "TIMES": times, "PRECISION": precision}
    signature = {"x": dtype, "y": dtype, "out": "*fp32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(3)}
    source = ASTSource(_product, signature, constants, aligned)
    return aot.code(triton.compile(source, target=GPUTarget("cuda", int(arch), 32)))


@pytest.mark.parametrize("arch", TENSOR_CORE)
def test_planted_loop_without_tensor_cores_is_seen(arch):
    with pytest.raises(AssertionError, match="no "):
        assert_multiplies(_compiled(arch, 32, 1, "*fp32", "ieee"), TENSOR_CORE[arch], 512)


@pytest.mark.parametrize("arch", ["80", "90"])
def test_planted_loop_with_part_of_its_products_is_seen(arch):
    code = _compiled(arch, 128, 2, "*bf16", "ieee")
    assert_multiplies(code, TENSOR_CORE[arch], 256)
    with pytest.raises(AssertionError, match="and no loop around them"):
        assert_multiplies(code, TENSOR_CORE[arch], 512)


def test_planted_lack_of_shared_memory_and_of_registers_is_seen():
    code = aot.code(aot.compile_kernel(LSE, "80", torch.bfloat16))
    with pytest.raises(AssertionError, match="bytes of shared memory"):
        assert_as_planned(replace(code, shared=163 * 1024 + 1), "80")
    with pytest.raises(AssertionError, match="threads of 255 registers"):
        assert_two_programs(replace(code, registers=255, threads=256), "80")
