"""The CUDA kernels on the host under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, and planted faults."""

import os
import re
import subprocess

import pytest

from tests.emulation.cuda import build

ADDRESSES, THREADS = "address,undefined", "thread"
STORE_BEYOND = ("similarity_lse.cu", "nothing().store(row_out + thread,", "nothing().store(row_out + thread + 1,")
NO_BARRIER = (
    "tile.cuh",
    "ptx::cp_async_wait<kStages - 2>();\n    __syncthreads();",
    "ptx::cp_async_wait<kStages - 2>();",
)
WRONG_FRAGMENT = ("tile.cuh", "in_stage(row, k * 2 + place.lane / 8 % 2)", "in_stage(row, k * 2 + place.lane / 16)")


def run(*args, **options) -> subprocess.CompletedProcess:
    stop = "halt_on_error=1"
    environment = os.environ | {"UBSAN_OPTIONS": stop, "TSAN_OPTIONS": stop, "ASAN_OPTIONS": "detect_leaks=0"}
    program = build.driver(*args, **options)
    return subprocess.run([program], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("sanitizer", [None, ADDRESSES, THREADS])
def test_every_kernel(sanitizer):
    done = run(sanitizer)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 wrong\n", "")


@pytest.mark.parametrize(
    ("sanitizer", "fault", "message"),
    [
        (
            ADDRESSES,
            STORE_BEYOND,
            r"heap-buffer-overflow[^#]*WRITE[^#]*#0 .*LogSum::store[^#]*#1 .*similarity_lse_kernel",
        ),
        (THREADS, NO_BARRIER, r"data race[^#]*#0 .*ldmatrix[^#]*#1 .*dot_tile"),
        (None, WRONG_FRAGMENT, r"^WRONG lse"),
    ],
    ids=["store out of bounds", "missing barrier", "wrong fragment"],
)
def test_a_planted_fault_is_caught(sanitizer, fault, message):
    """In the program that finds nothing wrong without it."""
    done = run(sanitizer, fault)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr), done.stdout + done.stderr
