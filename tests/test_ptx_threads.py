"""What threads do together in the PTX executor: warp instructions, atomics, divergence, grids."""

import numpy as np
import pytest

from tests.emulation.ptx import run
from tests.ptx_snippets import evaluate, kernel_text

I32, U32 = np.int32, np.uint32


def lanes(function) -> np.ndarray:
    return U32([function(lane) for lane in range(32)])


# value = 100 + lane; clamp 31 and segment mask 0, or subwarps of 8 lanes: clamp 7 (0 for up), segment mask 24
SHUFFLES = [
    ("bfly", "1, 31", lambda i: 100 + (i ^ 1)),
    ("bfly", "16, 31", lambda i: 100 + (i ^ 16)),
    ("bfly", "8, 0x1807", lambda i: 100 + (i ^ 8 if i & 8 else i)),  # a lower subwarp is in reach, a higher one is not
    ("down", "4, 31", lambda i: 100 + i + 4 if i < 28 else 100 + i),
    ("down", "3, 0x1807", lambda i: 100 + i + 3 if i % 8 < 5 else 100 + i),
    ("up", "1, 0", lambda i: 100 + i - 1 if i > 0 else 100),
    ("up", "2, 0x1800", lambda i: 100 + i - 2 if i % 8 > 1 else 100 + i),
    ("idx", "5, 31", lambda i: 105),
    ("idx", "5, 0x1807", lambda i: 100 + i // 8 * 8 + 5),
]


@pytest.mark.parametrize(("mode", "operands", "expected"), SHUFFLES)
def test_shuffle(mode, operands, expected):
    found = evaluate(f"shfl.sync.{mode}.b32 d, a, {operands}, -1;", U32(np.arange(100, 132)), result=U32)
    np.testing.assert_array_equal(found, lanes(expected))


def test_shuffle_tells_which_lanes_were_in_range():
    found = evaluate("shfl.sync.down.b32 %r1|p, a, 30, 31, -1; selp.u32 d, 1, 0, p;", U32(np.arange(32)), result=U32)
    np.testing.assert_array_equal(found, lanes(lambda i: int(i < 2)))


def test_shuffle_and_vote_of_half_warps_at_once():
    """Lanes of both halves execute the same instructions together, with member masks of their own."""
    body = "setp.lt.u32 q, a, 16; selp.b32 %r1, 0x0000FFFF, 0xFFFF0000, q; and.b32 %r2, a, 1; setp.eq.u32 p, %r2, 0;"
    body += "shfl.sync.bfly.b32 %r3, a, 3, 31, %r1; vote.sync.ballot.b32 %r4, p, %r1; xor.b32 d, %r3, %r4;"
    found = evaluate(body, U32(np.arange(32)), result=U32)
    np.testing.assert_array_equal(found, lanes(lambda i: (i ^ 3) ^ (0x5555 if i < 16 else 0x55550000)))


VOTES = [
    ("vote.sync.ballot.b32 d, p, -1;", [0xF0000001, 0xFFFFFFFF, 0]),
    ("vote.sync.any.pred q, p, -1; selp.u32 d, 1, 0, q;", [1, 1, 0]),
    ("vote.sync.all.pred q, p, -1; selp.u32 d, 1, 0, q;", [0, 1, 0]),
    ("vote.sync.uni.pred q, p, -1; selp.u32 d, 1, 0, q;", [0, 1, 1]),
    ("@p bra IN; mov.u32 d, 0; bra OUT; IN: activemask.b32 d; OUT:", [None, 0xFFFFFFFF, 0]),
]


@pytest.mark.parametrize(("instruction", "expected"), VOTES)
def test_vote(instruction, expected):
    votes = U32([[lane in (0, 28, 29, 30, 31) for lane in range(32)], [1] * 32, [0] * 32]).reshape(-1)
    found = evaluate(f"setp.ne.u32 p, a, 0; {instruction}", votes, result=U32)
    wanted = np.repeat(U32([0 if value is None else value for value in expected]), 32)
    if expected[0] is None:  # only the voters execute activemask
        wanted[:32] = votes[:32] * U32(0xF0000001)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("add.s32", -16),
        ("min.s32", -16),
        ("max.s32", 15),
        ("max.u32", -1),
        ("xor.b32", 0),
        ("and.b32", 0),
        ("or.b32", -1),
    ],
)
def test_warp_reduction(operation, expected):
    found = evaluate(f"redux.sync.{operation} d, a, -1;", I32(np.arange(-16, 16)), result=I32)
    np.testing.assert_array_equal(found, I32([expected] * 32))


ATOMICS = [
    ("atom.global.add.u32 d, [%d1], a;", [10, 11, 13, 16], 20),
    ("atom.global.max.s32 d, [%d1], a;", [10, 10, 10, 10], 10),
    ("atom.global.exch.b32 d, [%d1], a;", [10, 1, 2, 3], 4),
    ("atom.global.cas.b32 d, [%d1], 10, a;", [10, 1, 1, 1], 1),
    ("atom.global.inc.u32 d, [%d1], 11;", [10, 11, 0, 1], 2),
    ("red.global.add.u32 [%d1], a; mov.u32 d, 0;", [0, 0, 0, 0], 20),
]


@pytest.mark.parametrize(("instruction", "expected", "left"), ATOMICS)
def test_atomic(instruction, expected, left):
    """Four threads with values 1 to 4 meet at one word that holds 10; it is the first element of the last buffer."""
    body = f"""
        .reg .b32 a, d;
        mov.u32 %r0, %tid.x; add.u32 a, %r0, 1;
        ld.param.u64 %d1, [word]; ld.param.u64 %d2, [out]; mad.wide.u32 %d2, %r0, 4, %d2;
        {instruction}
        st.global.u32 [%d2], d;
    """
    out, word = np.zeros(4, U32), U32([10])
    run(kernel_text(body, "u64 out, u64 word"), "k", (1,), (4,), [out, word])
    assert out.tolist() == expected
    assert word.tolist() == [left]


def test_grid_runs_in_chunks_and_special_registers_count_all_axes():
    body = """
        mov.u32 %r0, %ctaid.x; mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ctaid.z;
        mov.u32 %r3, %nctaid.x; mov.u32 %r4, %nctaid.y; mov.u32 %r5, %tid.x; mov.u32 %r6, %tid.y; mov.u32 %r7, %ntid.x;
        mad.lo.u32 %r8, %r2, %r4, %r1; mad.lo.u32 %r8, %r8, %r3, %r0;
        mad.lo.u32 %r9, %r6, %r7, %r5; mad.lo.u32 %r10, %r8, 15, %r9;
        ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r10, 4, %d0; st.global.u32 [%d0], %r10;
    """
    out = np.zeros(7 * 11 * 13 * 15, U32)
    run(kernel_text(body, "u64 out"), "k", (7, 11, 13), (5, 3), [out])
    np.testing.assert_array_equal(out, np.arange(out.size))


def test_divergent_loop():
    """Each thread loops as often as its number says, and leaves early beyond 40."""
    body = """
        mov.u32 %r0, %tid.x; mov.u32 %r1, 0; mov.u32 %r2, 0;
        setp.gt.u32 %p0, %r0, 40; @%p0 ret;
        TOP: setp.ge.u32 %p1, %r1, %r0; @%p1 bra DONE;
        add.u32 %r1, %r1, 1; add.u32 %r2, %r2, %r1; bra.uni TOP;
        DONE: bar.sync 0; ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r0, 4, %d0; st.global.u32 [%d0], %r2; ret;
    """
    out = np.zeros(64, U32)
    run(kernel_text(body, "u64 out"), "k", (1,), (64,), [out])
    np.testing.assert_array_equal(out, [i * (i + 1) // 2 if i <= 40 else 0 for i in range(64)])


def test_threads_that_diverged_meet_again():
    found = evaluate(
        "setp.ne.u32 p, a, 0; @p bra L; mov.u32 %r1, 0; L: activemask.b32 d;", U32([0, 1] * 16), result=U32
    )
    assert (found == 0xFFFFFFFF).all()


@pytest.mark.parametrize("meet", ["shfl.sync.bfly.b32 d, a, 1, 31, -1;", "bar.sync 0; mov.u32 d, a;"])
def test_threads_wait_for_those_that_come_from_below(meet):
    """Odd threads reach the meeting point only after a detour that lies behind it in the text."""
    body = f"and.b32 %r1, a, 1; setp.eq.u32 p, %r1, 1; @p bra DETOUR; MEET: {meet} bra END;"
    found = evaluate(f"{body} DETOUR: add.u32 a, a, 100; bra MEET; END:", U32(np.arange(32)), result=U32)
    detoured = [i + 100 * (i % 2) for i in range(32)]
    assert found.tolist() == (detoured if "bar" in meet else [detoured[i ^ 1] for i in range(32)])


def test_threads_that_are_gone_are_not_waited_for_and_have_no_vote():
    """16 of 48 threads leave at once, 4 more from behind a barrier, where the others already wait for them."""
    body = """
        mov.u32 %r0, %tid.x; setp.lt.u32 %p0, %r0, 16; @%p0 ret;
        setp.ge.u32 %p1, %r0, 44; @%p1 bra LEAVE;
        bar.sync 0; mov.pred %p2, -1; vote.sync.ballot.b32 %r1, %p2, -1; redux.sync.add.u32 %r2, %r0, -1;
        ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r0, 8, %d0; st.global.v2.u32 [%d0], {%r1, %r2}; ret;
        LEAVE: ret;
    """
    out = np.zeros((48, 2), U32)
    run(kernel_text(body, "u64 out"), "k", (1,), (48,), [out])
    assert out[16:32].tolist() == [[0xFFFF0000, sum(range(16, 32))]] * 16
    assert out[32:44].tolist() == [[0x0FFF, sum(range(32, 44))]] * 12
    assert not out[:16].any()
    assert not out[44:].any()
