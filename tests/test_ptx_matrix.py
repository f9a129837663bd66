"""The PTX executor's mma, ldmatrix and cp.async, in kernels of one warp that follow the PTX ISA's figures by hand."""

import re

import numpy as np
import pytest
import torch

from tests.emulation.ptx import PTXError, run
from tests.ptx_snippets import kernel_text

# C[16, 8] = A[16, 16] B[16, 8], all row-major in global memory: cp.async to shared memory, ldmatrix, mma.
TILE_PRODUCT = """
    .shared .align 16 .b8 tile_a[512];
    .shared .align 16 .b8 tile_b[256];
    ld.param.u64 %d0, [a]; ld.param.u64 %d1, [b]; ld.param.u64 %d2, [c];
    mov.u32 %r0, %laneid; mov.u32 %r1, tile_a; mov.u32 %r2, tile_b;
    shl.b32 %r3, %r0, 4; add.u32 %r4, %r1, %r3; mad.wide.u32 %d3, %r0, 16, %d0;
    cp.async.cg.shared.global [%r4], [%d3], 16;
    shl.b32 %r3, %r0, 3; add.u32 %r4, %r2, %r3; mad.wide.u32 %d3, %r0, 8, %d1;
    cp.async.ca.shared.global [%r4], [%d3], 8;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.warp.sync -1;
    and.b32 %r5, %r0, 15; shr.u32 %r6, %r0, 4;           // row of A, half of its columns
    shl.b32 %r7, %r5, 5; shl.b32 %r8, %r6, 4; add.u32 %r7, %r7, %r8; add.u32 %r7, %r7, %r1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r7];
    shl.b32 %r9, %r5, 4; add.u32 %r9, %r9, %r2;          // row of B
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r9];
    mov.f32 %f0, 0f00000000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {%f0, %f1, %f2, %f3}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f0, %f1, %f2, %f3};
    shr.u32 %r16, %r0, 2; and.b32 %r17, %r0, 3;          // group, member
    shl.b32 %r18, %r16, 3; mad.lo.u32 %r18, %r17, 2, %r18; mad.wide.u32 %d4, %r18, 4, %d2;
    st.global.v2.f32 [%d4], {%f0, %f1};
    st.global.v2.f32 [%d4+256], {%f2, %f3};
"""


def tile_product(body: str, dtype=torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel computes, and the product in float64."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, n, generator=generator).to(dtype) for n in (16, 8))
    c = torch.full((16, 8), float("nan"))
    run(kernel_text(body, "u64 a, u64 b, u64 c"), "k", (1,), (32,), [a, b, c])
    return c, a.double() @ b.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tile_product(dtype):
    body = TILE_PRODUCT.replace(".bf16.bf16.", ".f16.f16.") if dtype == torch.float16 else TILE_PRODUCT
    c, expected = tile_product(body, dtype)
    torch.testing.assert_close(c, expected.float(), rtol=0, atol=0)  # exact products, rounded once


WRONG_FRAGMENTS = {
    "A's registers 1 and 2": ("{%r10, %r11, %r12, %r13}, {%r14", "{%r10, %r12, %r11, %r13}, {%r14"),
    "B's registers": ("{%r14, %r15}, {%f0", "{%r15, %r14}, {%f0"),
    "B not transposed": (".x2.trans", ".x2"),
    "A transposed": (".x4.shared", ".x4.trans.shared"),
    "rows of D": ("[%d4+256]", "[%d4+128]"),
    "columns of A": ("shl.b32 %r8, %r6, 4", "shl.b32 %r8, %r6, 3; and.b32 %r8, %r8, 48"),
}


@pytest.mark.parametrize("fault", WRONG_FRAGMENTS)
def test_wrong_fragment_index_gives_a_wrong_product(fault):
    right, wrong = WRONG_FRAGMENTS[fault]
    assert TILE_PRODUCT.count(right) == 1
    c, expected = tile_product(TILE_PRODUCT.replace(right, wrong))
    assert not torch.allclose(c.double(), expected, rtol=0, atol=0.1)


ASYNC_FAULTS = {
    "no wait": ("cp.async.wait_group 0;", "", "cp.async that was not waited for"),
    "wait for an older group": ("wait_group 0", "wait_group 1", "cp.async that was not waited for"),
    "wait before commit": (
        "cp.async.commit_group;\n    cp.async.wait_group 0;",
        "cp.async.wait_group 0;\n    cp.async.commit_group;",
        "cp.async that was not waited for",
    ),
    "no barrier": ("bar.warp.sync -1;", "", "data race in shared memory: read-after-write"),
    "misaligned source": ("[%d3], 16;", "[%d3+8], 16;", "misaligned access: 16 bytes"),
    "misaligned row": ("[%r7];", "[%r7+8];", "misaligned access: 16 bytes"),
    "out of shared memory": ("[%r9];", "[%r9+32];", "out of bounds: 16 bytes at shared address 768"),
}


@pytest.mark.parametrize("fault", ASYNC_FAULTS)
def test_planted_fault(fault):
    right, wrong, message = ASYNC_FAULTS[fault]
    assert TILE_PRODUCT.count(right) == 1
    with pytest.raises(PTXError, match=re.escape(message)):
        tile_product(TILE_PRODUCT.replace(right, wrong))


# one thread copies up to 16 bytes, of which %r1 are read and the others zero
PARTIAL_COPY = """
    .shared .align 16 .b8 tile[16];
    ld.param.u64 %d0, [source]; ld.param.u64 %d1, [out]; mov.u32 %r0, tile; mov.u32 %r1, 6;
    cp.async.cg.shared.global [%r0], [%d0], 16, %r1;
    cp.async.wait_all;
    ld.shared.v4.b32 {%r2, %r3, %r4, %r5}, [%r0]; st.global.v4.b32 [%d1], {%r2, %r3, %r4, %r5};
"""


def partial_copy(body: str, check: bool = True) -> list[int]:
    source, out = np.arange(1, 4, dtype=np.uint16), np.zeros(8, np.uint16)
    run(kernel_text(body, "u64 source, u64 out"), "k", (1,), (1,), [source, out], check=check)
    return out.tolist()


def test_async_copy_fills_with_zeros():
    assert partial_copy(PARTIAL_COPY) == [1, 2, 3, 0, 0, 0, 0, 0]
    assert partial_copy(PARTIAL_COPY.replace("%r1, 6", "%r1, 0")) == [0] * 8


PARTIAL_FAULTS = {
    "source too short": ("%r1, 6", "%r1, 7", "out of bounds: 1 bytes at byte 6"),
    "source longer than the copy": ("%r1, 6", "%r1, 17", "cp.async of 16 bytes from a source of 17"),
    "misaligned source": ("[%d0], 16", "[%d0+2], 16", "misaligned access: 16 bytes"),
    "a thread's own copy not waited for": ("cp.async.wait_all;", "", "cp.async that was not waited for"),
}


@pytest.mark.parametrize("fault", PARTIAL_FAULTS)
def test_planted_fault_in_a_partial_copy(fault):
    right, wrong, message = PARTIAL_FAULTS[fault]
    with pytest.raises(PTXError, match=message):
        partial_copy(PARTIAL_COPY.replace(right, wrong))


def test_async_copy_without_wait_leaves_nan_when_races_are_not_searched():
    body = PARTIAL_COPY.replace("cp.async.wait_all;", "").replace(
        "mov.u32 %r1, 6;", "mov.u32 %r1, 6; st.shared.u32 [%r0], 0;"
    )
    assert partial_copy(body, check=False) == [0xFFFF] * 8


# D = A B for A[16, K] and B[K, 8] in 32-bit words of 1 or 2 elements; B is passed transposed, D's rows are of 8 floats.
FRAGMENTS_BY_HAND = """
    ld.param.u64 %d0, [a]; ld.param.u64 %d1, [b]; ld.param.u64 %d2, [c];
    mov.u32 %r0, %laneid; shr.u32 %r1, %r0, 2; and.b32 %r2, %r0, 3;
    mad.lo.u32 %r3, %r1, WORDS, %r2; mad.wide.u32 %d3, %r3, 4, %d0; mad.wide.u32 %d4, %r3, 4, %d1;
    ld.global.b32 %r10, [%d3]; ld.global.b32 %r11, [%d3+8*WORDS*4];
    LOAD_UPPER_HALF
    ld.global.b32 %r14, [%d4];
    mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
    mma.sync.aligned.SHAPE {%f0, %f1, %f2, %f3}, {A_REGISTERS}, {B_REGISTERS}, {%f0, %f1, %f2, %f3};
    shl.b32 %r4, %r1, 3; mad.lo.u32 %r4, %r2, 2, %r4; mad.wide.u32 %d5, %r4, 4, %d2;
    st.global.v2.f32 [%d5], {%f0, %f1}; st.global.v2.f32 [%d5+256], {%f2, %f3};
"""
SHAPES = [
    ("m16n8k4.row.col.f32.tf32.tf32.f32", 4, torch.float32),
    ("m16n8k8.row.col.f32.tf32.tf32.f32", 8, torch.float32),
    ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, torch.bfloat16),
    ("m16n8k16.row.col.f32.bf16.bf16.f32", 16, torch.bfloat16),
    ("m16n8k8.row.col.f32.f16.f16.f32", 8, torch.float16),
]


@pytest.mark.parametrize(("shape", "k", "dtype"), SHAPES)
def test_fragments(shape, k, dtype):
    """1 + A·B with fragments loaded element by element."""
    words = k * dtype.itemsize // 4
    wide = words == 8
    body = (
        FRAGMENTS_BY_HAND.replace("SHAPE", shape).replace("8*WORDS*4", str(8 * words * 4)).replace("WORDS", str(words))
    )
    upper = (
        f"ld.global.b32 %r12, [%d3+16]; ld.global.b32 %r13, [%d3+{8 * words * 4 + 16}]; ld.global.b32 %r15, [%d4+16];"
    )
    body = body.replace("LOAD_UPPER_HALF", upper if wide else "")
    body = body.replace("A_REGISTERS", "%r10, %r11, %r12, %r13" if wide else "%r10, %r11")
    body = body.replace("B_REGISTERS", "%r14, %r15" if wide else "%r14")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-64, 64, (rows, k), generator=generator).to(dtype) for rows in (16, 8))
    c = torch.full((16, 8), float("nan"))
    run(kernel_text(body, "u64 a, u64 b, u64 c"), "k", (1,), (32,), [a, b, c])
    torch.testing.assert_close(c.double(), 1 + a.double() @ b.double().T, rtol=0, atol=0)


def test_mma_ignores_the_low_bits_of_tf32():
    body = FRAGMENTS_BY_HAND.replace("SHAPE", SHAPES[0][0]).replace("8*WORDS*4", "128").replace("WORDS", "4")
    body = body.replace("LOAD_UPPER_HALF", "").replace("A_REGISTERS", "%r10, %r11").replace("B_REGISTERS", "%r14")
    a, b, c = torch.full((16, 4), 1 + 2.0**-10 + 2.0**-11), torch.ones(8, 4), torch.zeros(16, 8)
    run(kernel_text(body, "u64 a, u64 b, u64 c"), "k", (1,), (32,), [a, b, c])
    assert (c == 5 + 2.0**-8).all()
