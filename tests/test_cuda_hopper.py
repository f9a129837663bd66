"""What can be known of csrc/cuda/hopper without its device: how tiles are dealt out, and for which rows it is taken."""

import ctypes
import itertools
import subprocess
from types import SimpleNamespace

import pytest
import torch

from tests.emulation.cuda import build
from tests.objective_cases import OBJECTIVES
from uniclip_kernels import cuda
from uniclip_kernels._layout import Rectangle

SOURCE = """
#define __host__
#define __device__
#include "hopper/schedule.cuh"
using uniclip::cuda::hopper::Schedule;
extern "C" {
int first_of_block(Schedule s, int block) { return s.first_of_block(block); }
int first_of_row(Schedule s, int row) { return s.first_of_row(row); }
int row_of(Schedule s, int tile) { return s.row_of(tile); }
int block_of(Schedule s, int tile) { return s.block_of(tile); }
int pieces(Schedule s, int row) { return s.pieces(row); }
}
"""
RECTANGLES = [(1, 1), (1, 7), (7, 1), (3, 5), (10, 13), (90, 88), (90, 1), (2, 200)]
TRIANGLES = [1, 2, 3, 15, 16, 17, 90]


class Schedule(ctypes.Structure):
    _fields_ = (
        ("row_tiles", ctypes.c_int),
        ("col_tiles", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("triangle", ctypes.c_bool),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("schedule") / "schedule.so"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{build.KERNELS}", "-x", "c++", "-", "-o", target]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return ctypes.CDLL(str(target))


@pytest.mark.parametrize("multiprocessors", [1, 5, 132])
@pytest.mark.parametrize(
    ("rows", "cols", "triangle"), [(*r, False) for r in RECTANGLES] + [(n, n, True) for n in TRIANGLES]
)
def test_tiles_are_dealt_out(library, rows, cols, triangle, multiprocessors):
    lengths = [cols - row if triangle else cols for row in range(rows)]
    blocks = min(multiprocessors, sum(lengths))
    schedule = Schedule(rows, cols, blocks, triangle)
    edges = [library.first_of_block(schedule, block) for block in range(blocks + 1)]
    shares = [end - start for start, end in itertools.pairwise(edges)]
    assert edges[0] == 0
    assert edges[-1] == sum(lengths)
    assert max(shares) - min(shares) <= 1

    owners = [block for block, share in enumerate(shares) for _ in range(share)]
    assert [library.block_of(schedule, tile) for tile in range(sum(lengths))] == owners
    row_of = [row for row, length in enumerate(lengths) for _ in range(length)]
    assert [library.row_of(schedule, tile) for tile in range(sum(lengths))] == row_of
    pieces = []
    for row, length in enumerate(lengths):
        start = library.first_of_row(schedule, row)
        pieces.append(len(set(owners[start : start + length])))
        assert library.pieces(schedule, row) == pieces[-1]
    rectangle = Rectangle(0, rows, 0 if triangle else rows, cols if triangle else rows + cols)
    assert max(pieces) <= cuda._pieces(rectangle, (0, 0, rows, cols), blocks)


@pytest.mark.parametrize(("capability", "multiprocessors"), [((9, 0), 132), ((8, 0), 0), ((10, 0), 0), ((12, 0), 0)])
def test_the_device_decides(monkeypatch, capability, multiprocessors):
    major, minor = capability
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    cuda._hopper_multiprocessors.cache_clear()
    device = torch.device("cuda", 0)
    assert cuda._hopper_multiprocessors(device) == multiprocessors
    for dtype in (torch.bfloat16, torch.float16):
        for objective in OBJECTIVES:
            preferred = cuda.BACKEND.preference(device, dtype, objective) > 1
            assert preferred == (multiprocessors > 0 and objective != "siglip")
    assert cuda.BACKEND.preference(device, torch.float32, "mp_nce") == 0
    cuda._hopper_multiprocessors.cache_clear()
