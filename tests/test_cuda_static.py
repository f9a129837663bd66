"""The CUDA kernels as nvcc built them for parts that are not here: registers, spills, tensor cores, shared memory."""

import subprocess
from dataclasses import replace

import pytest

from tests.emulation import machine_code
from tests.emulation.cuda import cubins, toolkit
from tests.emulation.machine_code import (
    REGISTERS,
    assert_as_planned,
    assert_multiplies,
    assert_two_programs,
    product_loop,
)

needs_extension = pytest.mark.skipif(
    cubins.extension() is None, reason="uniclip_kernels._cuda was left out of this build (UNICLIP_BUILD_CUDA)"
)
GRADS = "similarity_grad_kernel", "positives_grad_kernel"

PLANTED = """
extern "C" __global__ void spill(float* out, int index) {
  float values[64] = {};
  for (int i = 0; i < index; ++i) values[i * index % 64] += out[i];
  out[index] = values[index % 64];
}
extern "C" __global__ void product(const float* x, const float* y, int d, float* out) {
  float sum = 0;
  for (int c = 0; c < d; ++c) sum += x[threadIdx.x * d + c] * y[blockIdx.x * d + c];
  out[threadIdx.x] = sum;
}
"""


@needs_extension
@pytest.mark.parametrize("arch", cubins.ARCHITECTURES)
def test_every_kernel(arch):
    kernels = cubins.kernels(arch)
    assert len(kernels) == 50, "36 of tiles, 9 of rows in three types, two sums, two of the layout and one of values"
    for name, code in kernels.items():
        try:
            assert_as_planned(code, arch)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@needs_extension
@pytest.mark.parametrize("arch", cubins.ARCHITECTURES)
@pytest.mark.parametrize("operand", cubins.OPERANDS)
@pytest.mark.parametrize(
    ("name", "flag"), [(n, False) for n in cubins.TILE_KERNELS] + [(n, True) for n in cubins.WITH_FLAG]
)
def test_kernels_over_tiles(name, flag, operand, arch):
    code = cubins.tile_kernel(name, operand, arch, flag)
    assert_multiplies(code, "HMMA", 512)
    counts = product_loop(code, "HMMA").counts
    assert counts["LDSM"] > 0
    assert counts["LDGSTS"] > 0
    if name in GRADS and (arch, operand) == ("120", "TF32"):
        code = replace(code, shared=0)  # its tile in float32 leaves room for one block in the 100 KB of this part
    if operand != "Float":  # whose sums of 8 columns take the registers of a second one
        assert_two_programs(code, arch)


@needs_extension
@pytest.mark.parametrize("dtype", ["__nv_bfloat16", "__half"])
@pytest.mark.parametrize("streams", [False, True], ids=["rows stay", "rows stream"])
@pytest.mark.parametrize("name", ["hopper_lse_kernel", "hopper_grad_kernel"])
def test_kernels_of_sm_90a(name, streams, dtype):
    instance = f"{name}I{len(dtype)}{dtype}Lb{int(not streams)}E"
    (code,) = (code for mangled, code in cubins.hopper_kernels().items() if instance in mangled)
    assert_as_planned(code, "90")
    assert code.registers * code.threads <= REGISTERS
    counts = product_loop(code, "HGMMA").counts
    assert counts["HGMMA"] == 8, "a chunk of 64 columns: two halves of the row tile, four times 16 columns"
    assert code.counts["UTMALDG"] > 0
    groups = [text for opcode, text in code.listing if opcode == "HGMMA" and "gsb0" in text]
    assert len(groups) == 1, "one group a chunk: else the compiler makes every product wait for the one before"


@needs_extension
def test_every_kernel_of_sm_90a():
    kernels = cubins.hopper_kernels()
    assert len(kernels) == 9, "two over tiles for two types, with rows that stay or stream, and the merge"
    (merge,) = (code for name, code in kernels.items() if "hopper_merge_kernel" in name)
    assert_as_planned(merge, "90")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    source, cubin = folder / "planted.cu", folder / "planted.cubin"
    source.write_text(PLANTED)
    subprocess.run([toolkit.nvcc(), "-arch=sm_80", "-cubin", str(source), "-o", str(cubin)], check=True)
    return {name: replace(code, threads=256) for name, code in machine_code.read(cubin.read_bytes()).items()}


def test_planted_spill_is_seen(planted):
    with pytest.raises(AssertionError, match="stack of 256 bytes"):
        assert_as_planned(planted["spill"], "80")


def test_planted_loop_without_tensor_cores_is_seen(planted):
    assert_as_planned(planted["product"], "80")
    with pytest.raises(AssertionError, match="no HMMA"):
        assert_multiplies(planted["product"], "HMMA", 512)


def test_planted_registers_are_seen(planted):
    with pytest.raises(AssertionError, match="256 threads of 136 registers"):
        assert_two_programs(replace(planted["product"], registers=136), "80")
