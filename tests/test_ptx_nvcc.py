"""CUDA C++ kernels whose PTX, as nvcc emits it for two architectures, the executor runs: against PyTorch in float64."""

import re
import subprocess
from functools import cache

import pytest
import torch

from tests.emulation.cuda import toolkit
from tests.emulation.ptx import PTXError, run

SOURCE = r"""
#include <cuda_bf16.h>
#include <cstdint>

// loss[i] = log sum_j exp(x[i, j]) + softplus(x[i, 0]) for one row a block, with warp shuffles and shared memory
extern "C" __global__ void row_lse(const float* x, float* loss, float* total, int columns) {
  __shared__ float partial[32];
  const float* row = x + size_t(blockIdx.x) * columns;
  float sum = 0.f;
  for (int j = threadIdx.x; j < columns; j += blockDim.x) sum += expf(row[j]);
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  SYNC;
  if (threadIdx.x == 0) {
    for (int w = 1; w < blockDim.x / 32; w++) sum += partial[w];
    loss[blockIdx.x] = logf(sum) + log1pf(__expf(row[0]));
    atomicAdd(total, sum);
  }
}

// c[16, 8] += a[16, k] b[8, k]^T in steps of 16, one warp: cp.async into two stages, ldmatrix, mma
using bf16 = __nv_bfloat16;
extern "C" __global__ void __launch_bounds__(32) product(const bf16* a, const bf16* b, float* c, int k) {
  extern __shared__ __align__(16) bf16 tiles[];  // 2 x (16 rows of a, 8 rows of b), 24 elements apart
  const int lane = threadIdx.x;
  auto shared = [&](int stage, int row, int column) {
    return (uint32_t)__cvta_generic_to_shared(&tiles[(stage * 24 + row) * 24 + column]); };
  auto load = [&](int stage, int k0) {
    for (int e = lane; e < 48; e += 32) {
      const int row = e / 2, column = e % 2 * 8;
      const bf16* from = (row < 16 ? a + size_t(row) * k : b + size_t(row - 16) * k) + k0 + column;
      const int valid = max(0, min(8, k - k0 - column)) * 2;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"(shared(stage, row, column)), "l"(valid ? from : a), "r"(valid) : "memory"); }
    asm volatile("cp.async.commit_group;" ::: "memory"); };
  float d[4] = {};
  load(0, 0);
  for (int k0 = 0, stage = 0; k0 < k; k0 += 16, stage ^= 1) {
    if (k0 + 16 < k) load(stage ^ 1, k0 + 16); else asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncwarp();
    uint32_t x[4], y[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(shared(stage, lane % 16, lane / 16 * 8)) : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
      : "=r"(y[0]), "=r"(y[1]) : "r"(shared(stage, 16 + lane % 8, lane / 8 % 2 * 8)) : "memory");
    asm volatile("{ .reg .b32 same; mov.b32 same, %8;\n"  // a scope with a register of its own
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {same,%9}, {%0,%1,%2,%3}; }"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    __syncwarp();
  }
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}
"""


@cache
def compile_ptx(architecture: int, synchronise: str = "__syncthreads()") -> str:
    command = [
        toolkit.nvcc(),
        "-std=c++17",
        "-O3",
        "-lineinfo",
        "-ptx",
        f"-arch=sm_{architecture}",
        f"-DSYNC={synchronise}",
    ]
    command += ["-x", "cu", "-o", "-", "-"]
    return subprocess.run(command, input=SOURCE, text=True, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("architecture", [80, 120])
@pytest.mark.parametrize("columns", [1, 100, 500])
def test_row_lse(architecture, columns):
    x, loss, total = torch.randn(7, columns), torch.zeros(7), torch.zeros(1)
    run(compile_ptx(architecture), "row_lse", (7,), (96,), [x, loss, total, columns])
    exact = x.double()
    expected = exact.logsumexp(1) + torch.nn.functional.softplus(exact[:, 0])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total.double(), exact.exp().sum().reshape(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("architecture", [80, 120])
@pytest.mark.parametrize("k", [8, 16, 64, 104])
def test_product(architecture, k):
    a, b, c = torch.randn(16, k).bfloat16(), torch.randn(8, k).bfloat16(), torch.zeros(16, 8)
    run(compile_ptx(architecture), "product", (1,), (32,), [a, b, c, k], shared_bytes=2 * 24 * 24 * 2)
    torch.testing.assert_close(c.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5)


def test_faults_name_the_source_line():
    x, loss, total = torch.randn(7, 50), torch.zeros(7), torch.zeros(1)
    with pytest.raises(
        PTXError, match=r"read-after-write, the other access by thread 32 .*\n  at line \d+ \(\S+:\d+\): ld"
    ):
        run(compile_ptx(80, "((void)0)"), "row_lse", (7,), (96,), [x, loss, total, 50])
    with pytest.raises(PTXError, match=r"out of bounds: .* \[block 6, thread 0\]"):
        run(compile_ptx(80), "row_lse", (7,), (96,), [x, loss[:6].clone(), total, 50])
    operands = [torch.zeros(16, 32).bfloat16(), torch.zeros(8, 32).bfloat16(), torch.zeros(16, 8), 32]
    with pytest.raises(PTXError, match="out of bounds: 16 bytes at shared address"):
        run(compile_ptx(80), "product", (1,), (32,), operands, shared_bytes=24 * 24 * 2)


@pytest.mark.parametrize("find", [toolkit.nvcc, toolkit.include_flags])
def test_a_missing_toolkit_is_one_package_away(find, monkeypatch):
    monkeypatch.setattr(toolkit, "_homes", lambda: [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=re.escape("pip install 'cuda-toolkit[nvcc,cccl]==")):
        find()
