"""Faults planted in PTX kernels: each must be an error of the executor, and the kernel without the fault must run."""

import re

import numpy as np
import pytest
import torch

from tests.emulation.ptx import PTXError, run, scheduler
from tests.ptx_snippets import kernel_text

THREADS = 64

# out[i] = source[n - 1 - i] for the 64 elements of each block, by way of shared memory
REVERSE = """
    .shared .align 16 .b8 tile[256];
    ld.param.u64 %d0, [source]; ld.param.u64 %d1, [out];
    mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 64, %r0; mad.wide.u32 %d2, %r2, 4, %d0;
    ld.global.u32 %r3, [%d2];
    mov.u32 %r4, tile; mad.lo.u32 %r5, %r0, 4, %r4; st.shared.u32 [%r5], %r3;
    bar.sync 0;
    sub.u32 %r6, 63, %r0; mad.lo.u32 %r7, %r6, 4, %r4; ld.shared.u32 %r8, [%r7];
    mad.wide.u32 %d3, %r2, 4, %d1; st.global.u32 [%d3], %r8;
"""
# each pair of lanes in a warp exchanges values by way of shared memory
EXCHANGE = REVERSE.replace("bar.sync 0", "bar.warp.sync -1").replace("sub.u32 %r6, 63, %r0", "xor.b32 %r6, %r0, 1")


def reverse(body: str, blocks: int = 2, check: bool = True) -> np.ndarray:
    source, out = (np.arange(blocks * THREADS, dtype=np.uint32), np.zeros(blocks * THREADS, np.uint32))
    run(kernel_text(body, "u64 source, u64 out"), "k", (blocks,), (THREADS,), [source, out], check=check)
    return out.reshape(blocks, THREADS)


def test_kernels_without_fault():
    source = np.arange(2 * THREADS).reshape(2, THREADS)
    np.testing.assert_array_equal(reverse(REVERSE), source[:, ::-1])
    np.testing.assert_array_equal(reverse(EXCHANGE), source ^ 1)


FAULTS = {
    "load out of bounds": (REVERSE, "[%d2];", "[%d2+4];", "out of bounds: 4 bytes at byte 512 of the buffer of source"),
    "load before the buffer": (REVERSE, "[%d2];", "[%d2+-4];", "out of bounds: 4 bytes at 0xfffffffffc, in no buffer"),
    "store out of bounds": (REVERSE, "[%d3],", "[%d3+512],", "out of bounds: 4 bytes at byte 512 of the buffer of out"),
    "store far away": (
        REVERSE,
        "[%d3],",
        "[%d3+1000000],",
        "out of bounds: 4 bytes at byte 1000000 of the buffer of out",
    ),
    "shared load out of bounds": (REVERSE, "63, %r0", "64, %r0", "out of bounds: 4 bytes at shared address 256"),
    "shared store out of bounds": (REVERSE, "[%r5],", "[%r5+4],", "out of bounds: 4 bytes at shared address 256"),
    "shared address below 0": (REVERSE, "[%r5],", "[%r5+-4],", "out of bounds: 4 bytes at shared address -4"),
    "null pointer": (REVERSE, "ld.param.u64 %d0, [source]", "mov.u64 %d0, 0", "in no buffer"),
    "misaligned load": (REVERSE, "[%d2];", "[%d2+2];", "misaligned access: 4 bytes at 0x10000000002"),
    "misaligned shared load": (REVERSE, "[%r7];", "[%r7+-2];", "misaligned access: 4 bytes"),
    "missing bar.sync": (REVERSE, "bar.sync 0;", "", "data race in shared memory: read-after-write"),
    "warp barrier for two warps": (
        REVERSE,
        "bar.sync 0;",
        "bar.warp.sync -1;",
        "data race in shared memory: read-after",
    ),
    "missing bar.warp.sync": (EXCHANGE, "bar.warp.sync -1;", "", "data race in shared memory: read-after-write"),
    "write after read": (
        REVERSE,
        "[%r7];",
        "[%r7]; st.shared.u32 [%r5], 0;",
        "data race in shared memory: write-after-read",
    ),
    "write after read by all": (
        REVERSE,
        "sub.u32 %r6, 63, %r0;",
        "ld.shared.u32 %r9, [%r4]; setp.ne.u32 %p0, %r0, 63; @%p0 bra L; st.shared.u32 [%r4], 9;"
        "L: sub.u32 %r6, 63, %r0;",
        "data race in shared memory: write-after-read, the other access by several threads [block 0, thread 63]",
    ),
    "barrier in the other block only": (
        REVERSE,
        "bar.sync 0;",
        "setp.eq.u32 %p0, %r1, 0; @%p0 bra L; bar.sync 0; L:",
        "data race in shared memory: read-after-write, the other access by thread 63 [block 0, thread 0]",
    ),
    "one place for all": (REVERSE, "[%r5], %r3", "[%r4], %r3", "two threads store different values at once"),
    "write by another thread": (
        REVERSE,
        "bar.sync 0;",
        "setp.ne.u32 %p0, %r0, 5; @%p0 bra L; st.shared.u32 [%r4], 9; L: bar.sync 0;",
        "data race in shared memory: write-after-write, the other access by thread 0 [block 0, thread 5]",
    ),
    "unwritten shared memory": (REVERSE, "[%r5], %r3", "[%r4], 5", "reads shared memory that nobody has written"),
    "unwritten register": (REVERSE, "[%d3], %r8", "[%d3], %r9", "register %r9 is read before it is written"),
    "register written by some threads only": (
        REVERSE,
        "sub.u32 %r6, 63, %r0;",
        "setp.lt.u32 %p0, %r0, 63; @%p0 sub.u32 %r6, 63, %r0;",
        "register %r6 is read before it is written [block 0, thread 63]",
    ),
    "register written on the first of two paths": (
        REVERSE,
        "sub.u32 %r6, 63, %r0;",
        "setp.lt.u32 %p0, %r0, 20; @%p0 bra L; sub.u32 %r6, 63, %r0; bra M; L: mov.u32 %r9, 0; M:",
        "register %r6 is read before it is written [block 0, thread 0]",
    ),
    "register written on the second of two paths": (
        REVERSE,
        "sub.u32 %r6, 63, %r0;",
        "setp.lt.u32 %p0, %r0, 20; @%p0 bra L; mov.u32 %r9, 0; bra M; L: sub.u32 %r6, 63, %r0; M:",
        "register %r6 is read before it is written [block 0, thread 20]",
    ),
    "unwritten predicate": (REVERSE, "bar.sync 0;", "@%p1 mov.u32 %r6, 0; bar.sync 0;", "register %p1 is read before"),
    "unwritten branch predicate": (REVERSE, "bar.sync 0;", "@%p1 bra L; L: bar.sync 0;", "register %p1 is read before"),
    "divergent barrier": (
        REVERSE,
        "bar.sync 0;",
        "setp.lt.u32 %p0, %r0, 32; @%p0 bra L; bar.sync 0; bra M; L: bar.sync 0; M:",
        "deadlock or divergent barrier in kernel k:\n  64 threads wait at line",
    ),
    "barrier for some threads": (
        REVERSE,
        "bar.sync 0;",
        "bar.sync 1, 32;",
        "barriers for a given number of threads are not",
    ),
    "shuffle with a lane that does not come": (
        REVERSE,
        "bar.sync 0;",
        "setp.eq.u32 %p0, %r0, 0; @%p0 bra M; shfl.sync.idx.b32 %r9, %r0, 3, 31, -1;"
        "bar.sync 0; bra L; M: bar.sync 0; L:",
        "deadlock",
    ),
    "shuffle from outside the mask": (
        REVERSE,
        "bar.sync 0;",
        "bar.sync 0; setp.ge.u32 %p0, %r0, 16; @%p0 bra L; shfl.sync.idx.b32 %r9, %r0, 20, 31, 0xFFFF; L:",
        "shfl reads a lane that does not take part",
    ),
    "lane outside its own mask": (
        REVERSE,
        "bar.sync 0;",
        "bar.sync 0; shfl.sync.idx.b32 %r9, %r0, 0, 31, 0xFFFF;",
        "a thread is not in its own member mask [block 0, thread 16]",
    ),
    "mma after some threads left": (
        REVERSE,
        "bar.sync 0;",
        "bar.sync 0; setp.eq.u32 %p0, %r0, 40; @%p0 ret;ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r4];",
        "needs all 32 threads of the warp",
    ),
    "two blocks write the same place": (REVERSE, "4, %d1", "0, %d1", "data race between blocks: overwrites byte 0"),
    "one block reads what another wrote": (
        REVERSE,
        "st.global.u32 [%d3], %r8;",
        "st.global.u32 [%d3], %r8; ld.global.u32 %r9, [%d1];",
        "data race between blocks: reads byte 0 of the buffer of out, which block 0 wrote [block 1, thread 0]",
    ),
    "generic address of nothing": (
        REVERSE,
        "ld.global.u32 %r3, [%d2]",
        "ld.u32 %r3, [4096]",
        "4 bytes at 0x1000, in no",
    ),
    "trap": (REVERSE, "bar.sync 0;", "bar.sync 0; trap;", "the kernel gave up"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault(fault):
    body, right, wrong, message = FAULTS[fault]
    assert body.count(right) == 1
    with pytest.raises(PTXError, match=re.escape(message)) as caught:
        reverse(body.replace(right, wrong))
    if "deadlock" not in message:
        assert re.search(r"\n  at line \d+: ", str(caught.value))


def test_launch_after_a_failed_one():
    """The executor keeps the state of a kernel's threads and uses it again."""
    text = kernel_text(REVERSE, "u64 source, u64 out")
    source, out = np.arange(2 * THREADS, dtype=np.uint32), np.zeros(2 * THREADS, np.uint32)
    with pytest.raises(PTXError, match="out of bounds"):
        run(text, "k", (2,), (THREADS,), [source, out[:100].copy()])
    run(text, "k", (2,), (THREADS,), [source, out])
    np.testing.assert_array_equal(out.reshape(2, THREADS), source.reshape(2, THREADS)[:, ::-1])


def test_race_search_can_be_left_out():
    reverse(REVERSE.replace("bar.sync 0;", ""), check=False)


def test_kernel_that_does_not_end(monkeypatch):
    monkeypatch.setattr(scheduler, "_MOST_SEGMENTS", 100)
    with pytest.raises(PTXError, match="the kernel does not end"):
        reverse(REVERSE.replace("bar.sync 0;", "L: bar.sync 0; bra L;"))


def test_a_view_may_reach_all_of_its_storage_but_no_further():
    body = "ld.param.u64 %d0, [source]; ld.param.u64 %d1, [out]; ld.global.u32 %r0, [%d0+OFFSET];"
    body += "st.global.u32 [%d1], %r0;"
    storage, out = torch.arange(16, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)

    def load(offset: int) -> int:
        text = kernel_text(body.replace("OFFSET", str(offset)), "u64 source, u64 out")
        run(text, "k", (1,), (1,), [storage[4:8:2], out])
        return out.item()

    assert [load(-16), load(0), load(44)] == [0, 4, 15]
    for offset in (-20, 48):
        with pytest.raises(PTXError, match="out of bounds"):
            load(offset)


def test_two_views_of_a_tensor_are_the_same_memory():
    body = "ld.param.u64 %d0, [a]; ld.param.u64 %d1, [b]; st.global.u32 [%d0], 7; ld.global.u32 %r0, [%d1+4];"
    body += "st.global.u32 [%d1+8], %r0; sub.s64 %d2, %d0, %d1; cvt.u32.u64 %r1, %d2; st.global.u32 [%d1], %r1;"
    values = torch.zeros(3, dtype=torch.int32)
    run(kernel_text(body, "u64 a, u64 b"), "k", (1,), (1,), [values[1:], values])
    assert values.tolist() == [4, 7, 7]


def test_source_lines_of_the_compiler_are_reported():
    text = kernel_text(".loc 1 42 5\nld.global.u32 %r0, [0];", "") + '\n.file 1 "/some/where/kernel.cu"\n'
    with pytest.raises(PTXError, match=re.escape("(kernel.cu:42): ld.global.u32 %r0, [0]")):
        run(text, "k", (1,), (1,), [])
