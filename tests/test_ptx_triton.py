"""Triton kernels, compiled for sm_80, whose PTX the executor runs on CPU tensors: against PyTorch in float64."""

import pytest
import torch
import triton
import triton.language as tl

from tests.emulation.ptx import PTXError, run
from tests.emulation.ptx.triton import PTXKernel

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def ragged(numel: int) -> tuple[int]:
    return (triton.cdiv(numel, 128),)


@triton.jit
def copy_kernel(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n), mask=i < n)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64, torch.int8, torch.int16, torch.int64])
def test_copy(dtype):
    kernel = PTXKernel(copy_kernel)
    for n in (1, 100, 128, 1000, 1024):
        source, target = torch.randn(n).mul(50).to(dtype), torch.zeros(n + 128, dtype=dtype)
        kernel[ragged(n)](source, target, n, BLOCK=128)
        assert torch.equal(target[:n], source)
        assert not target[n:].any()


@triton.jit
def elementwise_kernel(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(target + i, tl.exp2(x) + tl.log2(x * x + 1.0), mask=i < n)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exponential_and_rounding_to_the_output_type(dtype):
    source, target = torch.randn(300).to(dtype), torch.zeros(300, dtype=dtype)
    PTXKernel(elementwise_kernel)[ragged(300)](source, target, 300, BLOCK=128)
    expected = torch.exp2(source.double()) + torch.log2(source.double() ** 2 + 1)
    torch.testing.assert_close(target, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


@triton.jit
def row_sum_kernel(source, target, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        total += tl.load(source + row * stride + column, mask=column < columns, other=0.0)
    tl.store(target + row, tl.sum(total, 0))


@pytest.mark.parametrize("columns", [1, 63, 64, 200])
def test_row_sum(columns):
    source, target = torch.randn(7, columns), torch.zeros(7)
    PTXKernel(row_sum_kernel)[(7,)](source, target, columns, source.stride(0), BLOCK=64)
    torch.testing.assert_close(target.double(), source.double().sum(1), rtol=1e-6, atol=1e-5)


@triton.jit
def matmul_kernel(
    a, b, c, m, n, k, a_row, a_column, b_row, b_column, c_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        a_tile = tl.load(
            a + i[:, None] * a_row + inner[None, :] * a_column,
            mask=(i[:, None] < m) & (inner[None, :] < k),
            other=0.0,
        )
        b_tile = tl.load(
            b + inner[:, None] * b_row + j[None, :] * b_column,
            mask=(inner[:, None] < k) & (j[None, :] < n),
            other=0.0,
        )
        product = tl.dot(a_tile, b_tile, product, input_precision=PRECISION)
    tl.store(c + i[:, None] * c_row + j[None, :], product, mask=(i[:, None] < m) & (j[None, :] < n))


def check_matmul(a, b, precision, tolerance, **options):
    (m, k), n = a.shape, b.shape[1]
    c = torch.full((m, n), float("nan"))
    tiles = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "PRECISION": precision} | options
    grid = lambda meta: (triton.cdiv(m, meta["BLOCK_M"]), triton.cdiv(n, meta["BLOCK_N"]))  # noqa: E731
    compiled = PTXKernel(matmul_kernel)[grid](a, b, c, m, n, k, *a.stride(), *b.stride(), c.stride(0), **tiles)
    expected, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert ((c - expected).abs() / scale).max() <= tolerance
    return compiled.asm["ptx"]


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matmul_in_16_bits(dtype, num_stages):
    """Operands both with contiguous K (b is transposed), aligned, K loop in four steps."""
    a, b = torch.randn(100, 128).to(dtype), torch.randn(72, 128).to(dtype)
    ptx = check_matmul(a, b.T, "ieee", 1e-6, num_stages=num_stages)
    assert f"mma.sync.aligned.m16n8k16.row.col.f32.{'bf16' if dtype == torch.bfloat16 else 'f16'}" in ptx
    assert ("cp.async" in ptx) == (num_stages > 1)


@pytest.mark.parametrize(
    ("precision", "tolerance", "instruction"),
    [("ieee", 1e-6, "fma.rn.f32"), ("tf32x3", 1e-6, ".tf32.tf32.f32"), ("tf32", 2**-9, ".tf32.tf32.f32")],
)
def test_matmul_in_32_bits(precision, tolerance, instruction):
    ptx = check_matmul(torch.randn(64, 96), torch.randn(96, 64), precision, tolerance, num_stages=2)
    assert instruction in ptx


def test_tf32_is_less_exact_than_its_threefold_product():
    with pytest.raises(AssertionError):
        check_matmul(torch.randn(64, 96), torch.randn(96, 64), "tf32", 1e-6, num_stages=2)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (70, 33, 50), (64, 129, 31)])
def test_ragged_matmul(m, n, k):
    check_matmul(torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16(), "ieee", 1e-6)


def test_matmul_of_strided_views():
    """Every second row and column of a larger tensor, from an odd offset: only the storage bounds the pointer."""
    a, b = torch.randn(101, 83).bfloat16()[1::2, 1::2], torch.randn(120, 83).bfloat16()[::2, 1::2].T
    check_matmul(a, b, "ieee", 1e-6)


def test_large_warps_and_small_tiles():
    a, b = torch.randn(40, 48).bfloat16(), torch.randn(48, 24).bfloat16()
    check_matmul(a, b, "ieee", 1e-6, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, num_warps=1)
    check_matmul(a, b, "ieee", 1e-6, BLOCK_M=64, BLOCK_N=32, BLOCK_K=16, num_warps=8)


@triton.jit
def both_axes_kernel(source, row_max, row_sum, column_max, column_sum, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    x = tl.load(source + i[:, None] * COLUMNS + j[None, :])
    upper = tl.where(i[:, None] <= j[None, :], x, float("-inf"))
    tl.store(row_max + i, tl.max(upper, 1))
    tl.store(column_max + j, tl.max(upper, 0))
    tl.store(row_sum + i, tl.sum(tl.where(upper == float("-inf"), 0.0, upper), 1))
    tl.store(column_sum + j, tl.sum(tl.where(upper == float("-inf"), 0.0, upper), 0))


@pytest.mark.parametrize("num_warps", [1, 4, 8])
def test_where_max_and_sum_along_both_axes(num_warps):
    x = torch.randn(32, 64)
    row_max, row_sum, column_max, column_sum = (torch.zeros(n) for n in (32, 32, 64, 64))
    kernel = PTXKernel(both_axes_kernel)
    kernel[(1,)](x, row_max, row_sum, column_max, column_sum, ROWS=32, COLUMNS=64, num_warps=num_warps)
    upper = torch.ones(32, 64).triu().bool()
    assert torch.equal(row_max, x.masked_fill(~upper, float("-inf")).amax(1))
    assert torch.equal(column_max, x.masked_fill(~upper, float("-inf")).amax(0))
    torch.testing.assert_close(row_sum.double(), (x.double() * upper).sum(1), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(column_sum.double(), (x.double() * upper).sum(0), rtol=1e-6, atol=1e-5)


@triton.jit
def far_kernel(source, target, stride, BLOCK: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    tl.store(target + row * BLOCK + i, tl.load(source + row * stride + i) + 1)


def test_offsets_beyond_32_bits():
    stride = 2**31 + 48
    source, target = (
        torch.empty(stride + 64, dtype=torch.int8),
        torch.zeros(2, 64, dtype=torch.int8),
    )  # mostly untouched
    source[:64], source[stride:] = 3, 5
    PTXKernel(far_kernel)[(2,)](source, target, stride, BLOCK=64)
    assert target.tolist() == [[4] * 64, [6] * 64]


@triton.jit
def control_flow_kernel(source, target, limit, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    total = tl.sum(tl.load(source + program * BLOCK + tl.arange(0, BLOCK)), 0)
    steps = 0
    while total < limit:
        total = total * 2 + 1
        steps += 1
    if program == 1:
        steps = -steps
    elif program > 2:
        for i in range(program):
            steps += i * i
    if program == 4:
        return
    tl.store(target + program, steps)


def test_control_flow():
    source, target = torch.rand(5, 64), torch.full((5,), -99, dtype=torch.int32)
    PTXKernel(control_flow_kernel)[(5,)](source, target, 1000.0, BLOCK=64)

    def steps(total: float) -> int:
        return 0 if total >= 1000 else 1 + steps(2 * total + 1)

    counts = [steps(total) for total in source.sum(1).tolist()]
    assert target.tolist() == [counts[0], -counts[1], counts[2], counts[3] + 5, -99]


@triton.jit(do_not_specialize=["plain"])
def scalars_kernel(target, one, sixteen, plain, large, real, flag, SCALE: tl.constexpr = 3):
    value = one + sixteen * 10 + plain * 1000 + (large >> 32) * 100000
    if flag:
        value = -value
    tl.store(target, value)
    tl.store(target + 1, (real * SCALE).to(tl.int64))


def test_scalars_and_specialisation():
    """Integers equal to 1 become constants, the others parameters; the variants are those Triton's JIT would make."""
    kernel, target = PTXKernel(scalars_kernel), torch.zeros(2, dtype=torch.int64)
    compiled = kernel[(1,)](target, 1, 32, 1, 7 << 32, 2.5, True)
    assert target.tolist() == [-(1 + 320 + 1000 + 700000), 7]
    assert compiled.asm["ptx"].count(".param .") == 6 + 2  # all but `one`, and two scratch pointers
    kernel[(1,)](target, 5, 32, 2, 7 << 32, 2.5, False, SCALE=4)
    assert target.tolist() == [5 + 320 + 2000 + 700000, 10]
    assert len(kernel.compiled) == 2
    for plain, sixteen, variants in ((3, 48, 2), (16, 64, 2), (3, 49, 3), (1, 50, 3)):
        kernel[(1,)](target, 5, sixteen, plain, 7 << 32, 2.5, False, SCALE=4)
        assert target[0] == 5 + sixteen * 10 + plain * 1000 + 700000
        assert len(kernel.compiled) == variants


def test_pointer_alignment_is_specialised():
    kernel, source, target = PTXKernel(copy_kernel), torch.randn(132), torch.zeros(132)
    aligned = kernel[(1,)](source, target, 128, BLOCK=128, num_warps=1).asm["ptx"]
    shifted = kernel[(1,)](source[1:], target[1:], 128, BLOCK=128, num_warps=1).asm["ptx"]
    assert len(kernel.compiled) == 2
    assert "ld.global.v4.b32" in aligned
    assert "ld.global.v4.b32" not in shifted
    assert torch.equal(target[1:129], source[1:129])


@triton.jit
def unguarded_kernel(source, target, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i))


@triton.jit
def colliding_kernel(target, BLOCK: tl.constexpr):
    tl.store(target + tl.arange(0, BLOCK), tl.program_id(0))


def test_planted_faults_name_the_python_line():
    place = r" \[block 1, thread \d+\]\n  at line \d+ \(test_ptx_triton.py:\d+\): (@%p1 )?"
    with pytest.raises(PTXError, match="out of bounds.*" + place + "ld.global"):
        PTXKernel(unguarded_kernel)[(2,)](torch.zeros(100), torch.zeros(128), BLOCK=64)
    with pytest.raises(PTXError, match="out of bounds.*" + place + "st.global"):
        PTXKernel(unguarded_kernel)[(2,)](torch.zeros(128), torch.zeros(100), BLOCK=64)
    with pytest.raises(PTXError, match="data race between blocks: overwrites byte 0"):
        PTXKernel(colliding_kernel)[(2,)](torch.zeros(64, dtype=torch.int32), BLOCK=64)


def plant(monkeypatch, right: str, wrong: str) -> None:
    """Makes PTXKernel execute Triton's PTX with something replaced in it."""

    def run_with_fault(text, *args):
        assert right in text
        run(text.replace(right, wrong), *args)

    monkeypatch.setattr("tests.emulation.ptx.triton.run", run_with_fault)


def test_missing_barriers_in_compiled_code(monkeypatch):
    plant(monkeypatch, "bar.sync", "// bar.sync")
    with pytest.raises(PTXError, match="data race in shared memory"):
        PTXKernel(row_sum_kernel)[(1,)](torch.randn(1, 64), torch.zeros(1), 64, 64, BLOCK=64, num_warps=2)


def test_missing_wait_in_compiled_code(monkeypatch):
    plant(monkeypatch, "cp.async.wait_group", "// cp.async.wait_group")
    with pytest.raises(PTXError, match=r"cp\.async that was not waited for"):
        check_matmul(torch.randn(64, 128).bfloat16(), torch.randn(64, 128).bfloat16().T, "ieee", 1e-6, num_stages=3)


def test_bad_launches():
    with pytest.raises(TypeError, match=r"has to be a triton\.JITFunction, not function"):
        PTXKernel(copy_kernel.fn)
    with pytest.raises(TypeError, match="missing"):
        PTXKernel(copy_kernel)[(1,)](torch.zeros(1), BLOCK=128)
    with pytest.raises(KeyError, match="num_wraps"):
        PTXKernel(copy_kernel)[(1,)](torch.zeros(1), torch.zeros(1), 1, BLOCK=128, num_wraps=4)
