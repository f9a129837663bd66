"""The CUDA backend: tensor-core kernels in C++ for compute capability 8.0 and newer, for those who cannot ship Triton.

They are compiled into ``uniclip_kernels._cuda``; importing that registers their operators. The second product is
PyTorch's. Devices of compute capability 9.0 have kernels of their own over the tiles of 16-bit rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension
from ._backend import Strip
from ._gpu import GPUBackend, contiguous
from ._layout import Rectangle
from ._problem import Groups, Negatives, Positives, Problem, Terms

_HOPPER_DTYPES = torch.bfloat16, torch.float16
_SLICES = 4  # blocks that share out the tiles with positives of a row of tiles: there may be one such row, or hundreds


class CUDABackend(GPUBackend):
    """``ops`` holds the operators ``cuda_*``: those of the extension, or in tests their emulation on the host."""

    def __init__(self, device_type: str = "cuda", ops=torch.ops.uniclip_kernels, workspace_bytes: int = 256 << 20):
        super().__init__(device_type, workspace_bytes)
        self.ops = ops

    def unusable(self) -> str | None:
        try:
            extension = _extension.load("_cuda")
        except ImportError as error:
            return str(error)
        if torch.version.cuda is None:
            return f"torch {torch.__version__} was built without CUDA"
        if torch.version.cuda.split(".")[0] != extension.cuda_version.split(".")[0]:
            return f"it was built for CUDA {extension.cuda_version}, and torch {torch.__version__} for {torch.version.cuda}"
        if not torch.cuda.is_available():
            return "there is no CUDA device"
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        if not _runs_on(torch.cuda.get_device_capability(), extension.architectures):
            built = ", ".join(f"{a // 10}.{a % 10}" for a in extension.architectures)
            return f"it was built for compute capability {built} and newer, and the device has {capability}"
        return None

    def preference(self, device: torch.device, dtype: torch.dtype, objective: str | None) -> int:
        """More than Triton's where there are kernels for compute capability 9.0 alone."""
        hopper = dtype in _HOPPER_DTYPES and objective != "siglip" and _hopper_multiprocessors(device) > 0
        return 2 if hopper else 0

    def find_valid(self, *args) -> None:
        self.ops.cuda_check_values(*args)

    def number_samples(self, *args) -> None:
        self.ops.cuda_number_samples(*args)

    def lay_out(self, *args) -> None:
        *args, layout = args
        self.ops.cuda_layout(*args, *layout[:-1])

    def gather_rows(self, z: Tensor, order: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
        rows = z.new_empty(len(order), self.padded_columns(z.shape[1]))
        inv_norm = z.new_empty(len(order), dtype=torch.float32)
        self.ops.cuda_gather_rows(z, order, normalize, rows, inv_norm)
        return rows, inv_norm

    def scatter_rows(
        self, grad_rows: Tensor, z: Tensor, slot: Tensor, inv_norm: Tensor, factor: Tensor, normalize: bool
    ) -> Tensor:
        grad = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        self.ops.cuda_scatter_rows(grad_rows, z, slot, inv_norm, factor, normalize, grad)
        return grad

    def negatives_forward(self, problem: Problem, strip: Strip, negatives: Negatives) -> None:
        rectangle, (total, top) = strip.rectangle, negatives
        tiles, sigmoid = self._tiles(rectangle), problem.objective.negatives == "sigmoid"
        args = *_similarities(problem, problem.excluded), *tiles
        if blocks := _hopper_blocks(problem, rectangle, tiles):
            row_parts = total.new_empty(2 * _pieces(rectangle, tiles, blocks), tiles[2] * self.block)
            by_col = total.new_empty(tiles[2], tiles[3] * self.block)
            self.ops.cuda_hopper_lse(*args, total, row_parts, by_col, blocks)
            return
        planes = 2 if sigmoid else 1
        by_row = total.new_empty(planes, tiles[3], tiles[2] * self.block)
        by_col = by_row if rectangle.diagonal else total.new_empty(planes, tiles[2], tiles[3] * self.block)
        self.ops.cuda_similarity_lse(*args, sigmoid, by_row, by_col)
        i0, i1, j0, j1 = rectangle
        sides = [(by_row, slice(i0, i1)), (by_col, slice(j0, j1))]
        for parts, slots in sides[:1] if rectangle.diagonal else sides:
            if sigmoid:
                total[slots] += parts[0].sum(0)
                top[slots] = top[slots].maximum(parts[1].amax(0))
            else:
                self.ops.cuda_merge_lse(total[slots], parts[0])

    def positives_forward(self, problem: Problem, strips: Sequence[Strip], base: Tensor) -> Positives:
        softmax = problem.objective.positives == "softmax"
        parts = base.new_empty(4 if softmax else 3, 4 * _SLICES, problem.own_slots)
        args = *_similarities(problem, problem.same), *_positives(problem)
        self.ops.cuda_positives_forward(*args, base, _SLICES, parts)
        sums = parts.sum(1)
        if softmax:
            sums[0] = parts[0].logsumexp(0)
        loss, slope, count, *s = F.pad(sums, (0, len(base) - problem.own_slots))
        return Positives(loss, slope, s[0] if softmax else base.new_empty(0), count.int())

    def negatives_grad(self, problem: Problem, rectangle: Rectangle, terms: Terms, h: Tensor, sums: Tensor) -> None:
        tiles, sigmoid = self._tiles(rectangle), problem.objective.negatives == "sigmoid"
        parts = terms.lse.new_zeros(2, tiles[2], tiles[3])
        args = *_similarities(problem, problem.excluded), *tiles
        out = terms.lse, terms.coefficient, h, parts
        if blocks := _hopper_blocks(problem, rectangle, tiles):
            self.ops.cuda_hopper_grad(*args, *out, blocks)
        else:
            self.ops.cuda_similarity_grad(*args, sigmoid, *out)
        self._add_pair_sums(problem, rectangle, parts, sums)

    def positives_grad(self, problem: Problem, rectangle: Rectangle, terms: Terms, h: Tensor, sums: Tensor) -> None:
        tiles = self._tiles(rectangle)
        parts = terms.base.new_zeros(2, tiles[2], tiles[3])
        args = *_similarities(problem, problem.same), *tiles, *_positives(problem)
        self.ops.cuda_positives_grad(*args, terms.base, terms.share, terms.slope, _SLICES, h, parts)
        self._add_pair_sums(problem, rectangle, parts, sums)

    def _add_pair_sums(self, problem: Problem, rectangle: Rectangle, parts: Tensor, sums: Tensor) -> None:
        rows, cols = (problem.layout.tiles[slot // self.block :, 0] for slot in (rectangle.i0, rectangle.j0))
        self.ops.cuda_add_pair_sums(parts, rows, cols, rectangle.diagonal, sums)

    def _tiles(self, rectangle: Rectangle) -> tuple[int, int, int, int]:
        """First row and first column of tiles, and how many of each."""
        i0, i1, j0, j1 = (slot // self.block for slot in rectangle)
        return i0, j0, i1 - i0, j1 - j0

    def similarity_matrix(
        self, x: Tensor, y: Tensor, x_domains: Tensor, y_domains: Tensor, temperature: Tensor, offset: Tensor
    ) -> Tensor:
        s = x.new_empty(len(x_domains), len(y_domains), dtype=torch.float32)
        tables = temperature.contiguous(), offset.contiguous()
        self.ops.cuda_similarity_matrix(x, y, x_domains, y_domains, *tables, _allow_tf32(x), s)
        return s

    def similarity_matrix_grad(
        self,
        grad: Tensor,
        s: Tensor,
        x_domains: Tensor,
        y_domains: Tensor,
        temperature: Tensor,
        sums: Tensor,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        g = like.new_empty([-(-n // self.block) * self.block for n in grad.shape])
        parts = s.new_empty(2, len(grad), len(sums))
        self.ops.cuda_similarity_matrix_grad(grad, s, x_domains, y_domains, temperature.contiguous(), g, parts)
        self.ops.cuda_add_pair_sums(parts, x_domains, None, False, sums)
        return g, g.T


def _runs_on(capability: tuple[int, int], architectures: list[int]) -> bool:
    """Machine code runs on its own major version from its minor on; the PTX of the last one on everything newer."""
    device = capability[0] * 10 + capability[1]
    return device >= architectures[-1] or any(a // 10 == capability[0] and a <= device for a in architectures)


@functools.cache
def _hopper_multiprocessors(device: torch.device) -> int:
    """Of a device of compute capability 9.0; any other has none of them."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count if (properties.major, properties.minor) == (9, 0) else 0


def _hopper_blocks(problem: Problem, rectangle: Rectangle, tiles: tuple[int, int, int, int]) -> int:
    """Blocks for the kernels of csrc/cuda/hopper, or 0 where these are not for the problem."""
    if problem.objective.negatives == "sigmoid" or problem.rows.dtype not in _HOPPER_DTYPES:
        return 0
    return min(_hopper_multiprocessors(problem.rows.device), _tile_count(rectangle, tiles))


def _tile_count(rectangle: Rectangle, tiles: tuple[int, int, int, int]) -> int:
    _, _, row_tiles, col_tiles = tiles
    return row_tiles * (row_tiles + 1) // 2 if rectangle.diagonal else row_tiles * col_tiles


def _pieces(rectangle: Rectangle, tiles: tuple[int, int, int, int], blocks: int) -> int:
    """How many blocks may have tiles of one row, if each takes a run of about as many: see csrc/cuda/hopper/schedule.cuh."""
    col_tiles, shortest = tiles[3], _tile_count(rectangle, tiles) // blocks
    return min(col_tiles, (col_tiles - 2) // shortest + 2)


def _allow_tf32(rows: Tensor) -> bool:
    """Whether PyTorch's setting lets float32 products be rounded to TF32."""
    return rows.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _similarities(problem: Problem, groups: Groups) -> tuple[Tensor | bool | None, ...]:
    tables = problem.tables
    pairs = tables.temperature.contiguous(), tables.offset.contiguous(), contiguous(tables.domain_mask)
    return problem.rows, *groups, *pairs, _allow_tf32(problem.rows)


def _positives(problem: Problem) -> tuple[Tensor | bool, ...]:
    return problem.layout.spans, problem.tables.weight.contiguous(), problem.objective.positives == "softmax"


BACKEND = CUDABackend()
