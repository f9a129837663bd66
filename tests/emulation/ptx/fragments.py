"""Where the elements of a matrix sit in the registers of a warp.

After the figures "Matrix fragments for mma.m16n8k4 / m16n8k8 / m16n8k16" and "ldmatrix" of the PTX ISA, section
"Warp-level matrix instructions". With `group = lane / 4` and `member = lane % 4`, registers numbered from 0 and a
register holding `pack` elements (2 of 16 bits, or 1 of 32 bits):

    A (16×K)  register r, element e:  row = group + 8 (r % 2)      column = pack·member + e + 4·pack·(r / 2)
    B (K×8)   register r, element e:  row = pack·member + e + 4·pack·r      column = group
    C, D (16×8), element i of 4:      row = group + 8 (i / 2)      column = 2·member + i % 2

Each function returns, for every element of the matrix in row-major order, its place in an array of shape
(registers, 32 lanes, pack), flattened: `matrix = fragment[:, layout]` gathers, `fragment[:, layout] = matrix` scatters.
"""

from functools import cache

import numpy as np

_GROUP, _MEMBER = np.divmod(np.arange(32), 4)


@cache
def a_layout(k: int, pack: int) -> np.ndarray:
    """A, 16×k, in 2 (k = 4·pack) or 4 (k = 8·pack) registers."""
    register, lane, element = np.ogrid[: 2 * k // (4 * pack), :32, :pack]
    row = _GROUP[lane] + 8 * (register % 2)
    column = pack * _MEMBER[lane] + element + 4 * pack * (register // 2)
    return _places(row * k + column)


@cache
def b_layout(k: int, pack: int) -> np.ndarray:
    """B, k×8, in 1 or 2 registers."""
    register, lane, element = np.ogrid[: k // (4 * pack), :32, :pack]
    row = pack * _MEMBER[lane] + element + 4 * pack * register
    return _places(row * 8 + _GROUP[lane])


@cache
def c_layout(pack: int) -> np.ndarray:
    """C and D, 16×8, in 4 registers of float32 (pack 1) or 2 of float16 pairs (pack 2)."""
    register, lane, element = np.ogrid[: 4 // pack, :32, :pack]
    index = register * pack + element
    return _places((_GROUP[lane] + 8 * (index // 2)) * 8 + 2 * _MEMBER[lane] + index % 2)


def _places(matrix_index: np.ndarray) -> np.ndarray:
    """From the matrix index at each place to the place of each matrix index."""
    return np.argsort(matrix_index.reshape(-1))


def distribute_rows(rows: np.ndarray, transpose: bool) -> np.ndarray:
    """ldmatrix: (warps, 8 rows, 4 words) of 8×8 matrices of 16 bits -> (warps, 32 lanes) of registers.

    Lane `l` gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, of the transposed matrix if so wished.
    """
    if transpose:
        rows = np.ascontiguousarray(rows.view(np.uint16).transpose(0, 2, 1)).view(np.uint32)
    return rows.reshape(-1, 32)
