"""The PTX executor's instructions against results worked out by hand from the PTX ISA."""

import numpy as np
import pytest

from tests.emulation.ptx import PTXError, run
from tests.ptx_snippets import evaluate, kernel_text

I8, I16, I32, I64 = np.int8, np.int16, np.int32, np.int64
U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
F16, F32, F64 = np.float16, np.float32, np.float64
NAN, INF = float("nan"), float("inf")

# fmt: off
INTEGER = [
    ("add.s32 d, a, b;", [I32(2**31 - 1), I32(1)], I32(-(2**31))),
    ("add.u64 d, a, b;", [U64(2**64 - 1), U64(2)], U64(1)),
    ("sub.s16 d, a, b;", [I16(-32768), I16(1)], I16(32767)),
    ("mul.lo.s32 d, a, b;", [I32(-3), I32(7)], I32(-21)),
    ("mul.hi.s32 d, a, b;", [I32(-(2**31)), I32(2)], I32(-1)),
    ("mul.hi.u32 d, a, b;", [U32(2**32 - 1), U32(2**32 - 1)], U32(2**32 - 2)),
    ("mul.hi.u64 d, a, b;", [U64(2**63), U64(6)], U64(3)),
    ("mul.hi.s64 d, a, b;", [I64(-(2**63)), I64(6)], I64(-3)),
    ("mul.wide.s32 d, a, b;", [I32(-2), I32(3)], I64(-6)),
    ("mul.wide.u32 d, a, b;", [U32(2**32 - 1), U32(2)], U64(2**33 - 2)),
    ("mul.wide.u16 d, a, 3;", [U16(65535)], U32(196605)),
    ("mad.lo.s32 d, a, b, c;", [I32(5), I32(-6), I32(1)], I32(-29)),
    ("mad.hi.u32 d, a, b, c;", [U32(2**31), U32(4), U32(5)], U32(7)),
    ("mad.wide.s32 d, a, b, c;", [I32(-1), I32(4), I64(2**40)], I64(2**40 - 4)),
    ("div.s32 d, a, b;", [I32([-7, 7, -7, 9]), I32([2, -2, -2, 0])], I32([-3, -3, 3, -1])),
    ("rem.s32 d, a, b;", [I32([-7, 7, -7, 9]), I32([2, -2, -2, 0])], I32([-1, 1, -1, 9])),
    ("div.u32 d, a, b;", [U32(2**32 - 1), U32(10)], U32(429496729)),
    ("div.s64 d, a, b;", [I64(-(2**62) - 1), I64(2)], I64(-(2**61))),
    ("rem.u64 d, a, b;", [U64(2**64 - 1), U64(10)], U64(5)),
    ("min.s32 d, a, b;", [I32(-1), I32(1)], I32(-1)),
    ("min.u32 d, a, b;", [I32(-1), I32(1)], I32(1)),
    ("max.s64 d, a, b;", [I64(-5), I64(-6)], I64(-5)),
    ("abs.s32 d, a;", [I32(-17)], I32(17)),
    ("neg.s64 d, a;", [I64(17)], I64(-17)),
]
BITS = [
    ("and.b32 d, a, b;", [U32(0xFF00FF00), U32(0x0FF00FF0)], U32(0x0F000F00)),
    ("or.b16 d, a, b;", [U16(0x00F0), U16(0x0F00)], U16(0x0FF0)),
    ("xor.b64 d, a, -1;", [U64(0x0123456789ABCDEF)], U64(0xFEDCBA9876543210)),
    ("not.b32 d, a;", [U32(0)], U32(0xFFFFFFFF)),
    ("shl.b32 d, a, b;", [U32(0x80000001), U32([1, 31, 32, 200])], U32([2, 0x80000000, 0, 0])),
    ("shl.b64 d, a, 40;", [U64(3)], U64(3 << 40)),
    ("shr.u32 d, a, b;", [U32(0x80000000), U32([4, 31, 32, 99])], U32([0x08000000, 1, 0, 0])),
    ("shr.s32 d, a, b;", [I32(-8), U32([1, 31, 32, 99])], I32([-4, -1, -1, -1])),
    ("shr.s32 d, a, 2;", [I32(-8)], I32(-2)),
    ("lop3.b32 d, a, b, c, 0x96;", [U32(0b1100), U32(0b1010), U32(0b0110)], U32(0)),  # a ^ b ^ c
    ("lop3.b32 d, a, b, c, 0xE8;", [U32(0b1100), U32(0b1010), U32(0b0111)], U32(0b1110)),  # majority
    ("lop3.b32 d, a, b, c, 0xF8;", [U32(0b1000), U32(0b0110), U32(0b0011)], U32(0b1010)),  # a | b & c
    ("prmt.b32 d, a, b, c;", [U32(0x33221100), U32(0x77665544), U32([0x3210, 0x7531])], U32([0x33221100, 0x77553311])),
    ("prmt.b32 d, a, b, 0x9B80;", [U32(0xC3221100), U32(0x77665544)], U32(0x00FF0000)),  # signs of bytes 1, 3, 0
    ("shf.l.wrap.b32 d, a, b, c;", [U32(0x89ABCDEF), U32(0x01234567), U32([8, 32])], U32([0x23456789, 0x01234567])),
    ("shf.l.clamp.b32 d, a, b, c;", [U32(0x89ABCDEF), U32(0x01234567), U32([4, 40])], U32([0x12345678, 0x89ABCDEF])),
    ("shf.r.wrap.b32 d, a, b, c;", [U32(0x89ABCDEF), U32(0x01234567), U32([8, 36])], U32([0x6789ABCD, 0x789ABCDE])),
    ("shf.r.clamp.b32 d, a, b, 77;", [U32(0x89ABCDEF), U32(0x01234567)], U32(0x01234567)),
    ("bfe.u32 d, a, 4, 8;", [U32(0x12345678)], U32(0x67)),
    ("bfe.u32 d, a, b, c;", [U32(0xF0000000), U32([28, 28, 40, 3]), U32([4, 99, 4, 0])], U32([15, 15, 0, 0])),
    ("bfe.s32 d, a, b, c;", [U32(0x00000F80), U32([4, 7, 8]), U32([8, 5, 5])], I32([-8, -1, 15])),
    ("bfe.s32 d, a, b, c;", [I32(-256), U32([28, 40, 0]), U32([8, 4, 0])], I32([-1, -1, 0])),
    ("bfe.u64 d, a, 60, 8;", [U64(0xA << 60)], U64(0xA)),
    ("bfi.b32 d, a, b, 8, 4;", [U32(0xFB), U32(0x12345678)], U32(0x12345B78)),
    ("bfi.b32 d, a, b, 28, 99;", [U32(0xFB), U32(0x12345678)], U32(0xB2345678)),
    ("bfi.b64 d, a, b, 32, 32;", [U64(7), U64(5)], U64(7 << 32 | 5)),
    ("popc.b32 d, a;", [U32([0, 0xFFFFFFFF, 0x10010])], U32([0, 32, 2])),
    ("popc.b64 d, a;", [U64(2**64 - 2)], U32(63)),
    ("clz.b32 d, a;", [U32([0, 1, 0x80000000])], U32([32, 31, 0])),
    ("bfind.u32 d, a;", [U32([0, 1, 0x00800000])], U32([0xFFFFFFFF, 0, 23])),
    ("bfind.shiftamt.u32 d, a;", [U32([0, 1, 0x00800000])], U32([0xFFFFFFFF, 31, 8])),
    ("brev.b32 d, a;", [U32(0x00000013)], U32(0xC8000000)),
]
FLOAT = [
    ("add.f32 d, a, b;", [F32(1), F32(2**-24)], F32(1)),  # a tie, to even
    ("add.rz.f32 d, a, b;", [F32([1, -1]), F32([2**-24 * 1.5, -(2**-24) * 1.5])], F32([1, -1])),
    ("add.rm.f32 d, a, b;", [F32([1, -1]), F32([2**-30, -(2**-30)])], F32([1, -1 - 2**-23])),
    ("add.rp.f32 d, a, b;", [F32([1, -1]), F32([2**-30, -(2**-30)])], F32([1 + 2**-23, -1])),
    ("sub.rn.f64 d, a, b;", [F64(1), F64(2**-53)], F64(1 - 2**-53)),
    ("mul.f32 d, a, b;", [F32(1 + 2**-12), F32(1 + 2**-12)], F32(1 + 2**-11)),
    # the square is 1 + 2^-11 + 2^-24: rounded before the addition, the last term would be lost
    ("fma.rn.f32 d, a, b, c;", [F32(1 + 2**-12), F32(1 + 2**-12), F32(-1 - 2**-11)], F32(2**-24)),
    ("div.rn.f32 d, a, b;", [F32([1, -1, 0]), F32([3, 0, 0])], F32([0.33333334, -INF, NAN])),
    ("mul.ftz.f32 d, a, b;", [F32([2**-100, -(2**-100), 2**-63]), F32([2**-40, 2**-40, 2**-63])],
     F32([0, -0.0, 2**-126])),
    ("mul.f32 d, a, b;", [F32(2**-100), F32(2**-40)], F32(2**-140)),
    ("add.sat.f32 d, a, b;", [F32([0.75, -2, NAN, 0.25]), F32([0.75, 1, 0, 0.25])], F32([1, 0, 0, 0.5])),
    ("min.f32 d, a, b;", [F32([1, NAN, 3]), F32([2, 2, NAN])], F32([1, 2, 3])),
    ("max.NaN.f32 d, a, b;", [F32([1, NAN, 3]), F32([2, 2, NAN])], F32([2, NAN, NAN])),
    ("neg.f32 d, a;", [F32(1.5)], F32(-1.5)),
    ("abs.f64 d, a;", [F64(-1.5)], F64(1.5)),
    ("copysign.f32 d, a, b;", [F32(-1), F32(4)], F32(-4)),
    ("rcp.approx.ftz.f32 d, a;", [F32([4, -0.0])], F32([0.25, -INF])),
    ("sqrt.rn.f32 d, a;", [F32([9, -1])], F32([3, NAN])),
    ("rsqrt.approx.f32 d, a;", [F32(16)], F32(0.25)),
    ("ex2.approx.ftz.f32 d, a;", [F32([3, -INF, -130, INF])], F32([8, 0, 0, INF])),
    ("lg2.approx.f32 d, a;", [F32([8, 0, -1])], F32([3, -INF, NAN])),
    ("tanh.approx.f32 d, a;", [F32([0, 20])], F32([0, 1])),
    ("add.f16 d, a, b;", [F16(2048), F16(1)], F16(2048)),
    ("fma.rn.bf16 d, a, b, c;", [U16(0x3F80), U16(0x4000), U16(0x3F80)], U16(0x4040)),  # 1 * 2 + 1
    ("fma.rn.bf16x2 d, a, b, c;", [U32(0x3F80C000), U32(0x40003F80), U32(0x3F803F80)], U32(0x4040BF80)),  # 3 and -1
    ("mul.f16x2 d, a, b;", [U32(0x3C004000), U32(0x3C003800)], U32(0x3C003C00)),  # 1 * 1 and 2 * 0.5
    ("max.f16x2 d, a, b;", [U32(0x3C007E00), U32(0xBC003C00)], U32(0x3C003C00)),  # max(1, -1) and max(NaN, 1)
]
CONVERSION = [
    ("cvt.rni.s32.f32 d, a;", [F32([2.5, 3.5, -2.5, NAN, 3e9, -3e9])], I32([2, 4, -2, 0, 2**31 - 1, -(2**31)])),
    ("cvt.rzi.s32.f32 d, a;", [F32([1.9, -1.9])], I32([1, -1])),
    ("cvt.rmi.s32.f32 d, a;", [F32([1.9, -1.1])], I32([1, -2])),
    ("cvt.rpi.s32.f32 d, a;", [F32([1.1, -1.9])], I32([2, -1])),
    ("cvt.rzi.u32.f32 d, a;", [F32([-1, 4e9, 5e9])], U32([0, 4000000000, 2**32 - 1])),
    ("cvt.rzi.s64.f64 d, a;", [F64([2.0**62, 1e30, -1e30])], I64([2**62, 2**63 - 1, -(2**63)])),
    ("cvt.rzi.u64.f32 d, a;", [F32([2.0**63, 1e30])], U64([2**63, 2**64 - 1])),
    ("cvt.rmi.f32.f32 d, a;", [F32([1.9, -1.1])], F32([1, -2])),
    ("cvt.rn.f32.s32 d, a;", [I32([2**24 + 1, -5])], F32([2**24, -5])),
    ("cvt.rn.f32.u64 d, a;", [U64(2**64 - 1)], F32(2.0**64)),
    ("cvt.rn.f64.s64 d, a;", [I64(2**53 + 1)], F64(2.0**53)),
    ("cvt.s32.s8 d, a;", [U32([0x80, 0x1234567F])], I32([-128, 127])),
    ("cvt.u32.u16 d, a;", [U16(0xFFFF)], U32(0xFFFF)),
    ("cvt.s64.s32 d, a;", [I32(-2)], I64(-2)),
    ("cvt.u64.u32 d, a;", [U32(2**32 - 2)], U64(2**32 - 2)),
    ("cvt.u16.u32 d, a;", [U32(0x12345678)], U16(0x5678)),
    ("cvt.sat.u8.s32 d, a;", [I32([300, -5, 77])], U32([255, 0, 77])),
    ("cvt.sat.s16.u32 d, a;", [U32(70000)], I16(32767)),
    ("cvt.rn.f16.f32 d, a;", [F32([65519, 65520, 1 + 2**-11])], F16([65504, INF, 1])),
    ("cvt.f32.f16 d, a;", [F16([0.5, -INF])], F32([0.5, -INF])),
    ("cvt.rn.f32.f64 d, a;", [F64(1 + 2**-24)], F32(1)),
    ("cvt.f64.f32 d, a;", [F32(0.1)], F64(0.10000000149011612)),
    ("cvt.rn.bf16.f32 d, a;", [F32([1, 1 + 2**-8, 1 + 3 * 2**-8, NAN, 3.4e38])],
     U16([0x3F80, 0x3F80, 0x3F82, 0x7FFF, 0x7F80])),
    ("cvt.f32.bf16 d, a;", [U16(0xC040)], F32(-3)),
    ("cvt.rn.bf16x2.f32 d, a, b;", [F32(1), F32(-2)], U32(0x3F80C000)),  # a comes to lie above b
    ("cvt.rn.relu.bf16x2.f32 d, a, b;", [F32(1), F32(-2)], U32(0x3F800000)),
    ("cvt.rn.f16x2.f32 d, a, b;", [F32(1), F32(-2)], U32(0x3C00C000)),
    ("cvt.rna.tf32.f32 d, a;", [U32([0x3F800FFF, 0x3F801000, 0xBF801000])],
     U32([0x3F800000, 0x3F802000, 0xBF802000])),
]
PREDICATE = [
    ("setp.lt.s32 p, a, b; selp.b32 d, 7, 9, p;", [I32([-1, 1]), I32([1, -1])], I32([7, 9])),
    ("setp.lt.u32 p, a, b; selp.b32 d, 7, 9, p;", [I32([-1, 1]), I32([1, -1])], I32([9, 7])),
    ("setp.hs.u64 p, a, b; selp.b32 d, 7, 9, p;", [U64([5, 4]), U64([5, 5])], I32([7, 9])),
    *(
        (f"setp.{name}.f32 p, a, b; selp.b32 d, 1, 0, p;", [F32([1, 2, 3, NAN]), F32([2, 2, 2, 2])], I32(holds))
        for name, holds in {
            "eq": [0, 1, 0, 0], "ne": [1, 0, 1, 0], "lt": [1, 0, 0, 0], "le": [1, 1, 0, 0], "gt": [0, 0, 1, 0],
            "ge": [0, 1, 1, 0], "equ": [0, 1, 0, 1], "neu": [1, 0, 1, 1], "ltu": [1, 0, 0, 1], "leu": [1, 1, 0, 1],
            "gtu": [0, 0, 1, 1], "geu": [0, 1, 1, 1], "num": [1, 1, 1, 0], "nan": [0, 0, 0, 1],
        }.items()
    ),
    ("setp.gt.s32 p|q, a, 0; selp.b32 d, 1, 0, q;", [I32([1, -1])], I32([0, 1])),
    ("setp.eq.s32 q, a, 1; setp.gt.and.s32 p, b, 0, !q; selp.b32 d, 1, 0, p;",
     [I32([1, 2, 2]), I32([1, 1, 0])], I32([0, 1, 0])),
    ("setp.eq.s32 p, a, 1; setp.eq.s32 q, b, 1; xor.pred p, p, q; not.pred q, p; selp.b32 d, 1, 0, q;",
     [I32([1, 0]), I32([1, 1])], I32([1, 0])),
    ("set.ge.u32.f32 d, a, b;", [F32([1, NAN]), F32([1, 1])], U32([0xFFFFFFFF, 0])),
    ("set.ne.f32.s32 d, a, 4;", [I32([4, 5])], F32([0, 1])),
    ("mov.pred p, -1; @p mov.u32 d, 5; @!p mov.u32 d, 6;", [], U32([5] * 32)),
    ("mov.u32 d, 1; setp.ne.u32 p, a, 0; mov.pred q, -1; @p bra L; @q mov.u32 d, 2; L:", [U32([0, 1])], U32([2, 1])),
    ("setp.eq.u32 p, a, 0; mov.u32 d, 3; @!p add.u32 d, d, a;", [U32([0, 4])], U32([3, 7])),
]
MOVE = [
    ("mov.b32 d, {a, b};", [U16(0x1111), U16(0x2222)], U32(0x22221111)),
    ("mov.b64 d, {a, b};", [U32(1), U32(2)], U64(2 << 32 | 1)),
    ("mov.b32 {_, d}, a;", [U32(0x22221111)], U16(0x2222)),
    ("mov.b32 d, {a, %h9};", [U16(0x1111)], U32(0xFFFF1111)),  # a half that LLVM leaves undefined
    ("mov.b64 {d, %r1}, a;", [U64(2 << 32 | 1)], U32(1)),
    ("mov.f32 d, 0fBF800000;", [F32(0)], F32(-1)),
    ("mov.f64 d, 0d3FF8000000000000;", [F64(0)], F64(1.5)),
    ("mov.f64 d, 0f3FC00000;", [F64(0)], F64(1.5)),
    ("mov.f32 d, -1.25e1;", [F32(0)], F32(-12.5)),
    ("mov.u32 d, 0x1F; add.u32 d, d, 017;", [U32(0)], U32(46)),
    ("mov.u32 d, %laneid; mad.lo.u32 d, d, 1000, %warpid;", [U32([0] * 34)], U32([*range(0, 32000, 1000), 1, 1001])),
    ("mov.u32 d, %lanemask_lt;", [U32([0] * 3)], U32([0, 1, 3])),
    ("mov.u32 d, %ntid.x;", [U32([0] * 3)], U32([3] * 3)),
]
# fmt: on


@pytest.mark.parametrize(
    ("instruction", "inputs", "expected"),
    [*INTEGER, *BITS, *FLOAT, *CONVERSION, *PREDICATE, *MOVE],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_instruction(instruction, inputs, expected):
    found = evaluate(instruction, *inputs, result=expected.dtype.type)
    expected = np.broadcast_to(expected, found.shape)
    np.testing.assert_array_equal(found, expected)
    if expected.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0]))


def test_vectors_structs_and_extension():
    """v4 and v2 accesses, a struct by value, an 8-bit load into a 32-bit register, a constant table, local memory."""
    body = """
        .local .align 16 .b8 depot[16];
        ld.param.u64 %d0, [source]; ld.param.u64 %d1, [out]; ld.param.u32 %r9, [pair+4];
        ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%d0];
        ld.global.v2.u16 {%h0, %h1}, [%d0+12];
        ld.global.s8 %r4, [%d0+3];
        mov.u64 %d2, table; ld.const.u32 %r5, [%d2+4];
        mov.u64 %d3, depot; st.local.u32 [%d3+8], %r2; cvta.local.u64 %d4, %d3; ld.u32 %r6, [%d4+8];
        cvt.u32.u16 %r7, %h1;
        st.global.v4.b32 [%d1], {%r3, %r4, %r5, %r6};
        st.global.v2.b32 [%d1+16], {%r7, %r9};
    """
    parameters = "u64 source, u64 out, b64 pair"
    text = kernel_text(body, parameters, ".const .align 4 .u32 table[2] = {5, 77};").replace(
        ".param .b64 pair", ".param .align 4 .b8 pair[8]"
    )
    source, out = U32([0x80000000, 1, 2, 0x00030004]), np.zeros(6, U32)
    run(text, "k", (1,), (1,), [source, out, b"\1\0\0\0\2\0\0\0"])
    assert out.tolist() == [0x00030004, 0xFFFFFF80, 77, 2, 3, 2]


UNSUPPORTED = [
    ("frobnicate.s32 %r0, %r1;", "unsupported instruction"),
    ("add.cc.u32 %r0, 1, 2;", "unsupported modifier .cc"),
    ("mul.s32 %r0, 1, 2;", "need .lo, .hi or .wide"),
    ("add.rm.f64 %d0, %d1, %d2;", "rounding mode .rm is supported for f32 only"),
    ("add.s32 %r0, %x, 1;", "register %x is not declared"),
    ("add.s64 %r0, %d1, 1;", "register %r0 does not fit type s64"),
    ("add.s64 %d0, %r1, 1;", "register is too narrow for type s64"),
    ("mov.u64 %d0, nowhere;", "unknown symbol nowhere"),
    ("ld.param.u64 %d0, [nowhere];", "unknown parameter nowhere"),
    ("bra NOWHERE;", "unknown label"),
    (
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d0,%d1}, {%d2}, {%d3}, {%d0,%d1};",
        "unsupported modifier .m8n8k4",
    ),
    ("call foo;", "unsupported instruction"),
]


@pytest.mark.parametrize(("instruction", "message"), UNSUPPORTED)
def test_what_is_not_supported_is_named_with_its_line(instruction, message):
    text = kernel_text(f"mov.u32 %r1, 0;\n{instruction}")
    line = text[: text.index(instruction)].count("\n") + 1
    with pytest.raises(PTXError, match=message) as caught:
        run(text, "k", (1,), (1,), [])
    assert f"line {line}: {instruction.rstrip(';')}" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has 2 parameters, not 0"),
        ([np.zeros(1), 2**32], "n is of type u32, which cannot hold 4294967296"),
        ([np.zeros(1), 1.5], "n is of type u32, which cannot hold 1.5"),
        ([np.zeros((4, 4)).T, 1], "contiguous"),
        ([np.zeros(1), b"12"], "n has 4 bytes, not 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(PTXError, match=message):
        run(kernel_text("ret;", "u64 out, u32 n"), "k", (1,), (1,), arguments)


def test_unknown_kernel_and_wrong_block_size():
    with pytest.raises(PTXError, match="no kernel 'other'; the module has k"):
        run(kernel_text("ret;"), "other", (1,), (1,), [])
    with pytest.raises(PTXError, match="needs blocks of 64 threads, not 32"):
        run(kernel_text("ret;").replace("k()", "k() .reqntid 64"), "k", (1,), (32,), [])
