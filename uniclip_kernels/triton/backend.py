"""The Triton backend: the engine's primitives as launches of Triton kernels, the second product by the BLAS library."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .._backend import Strip
from .._gpu import CHECKED, GPUBackend
from .._layout import Layout, Rectangle
from .._problem import Negatives, Positives, Problem, Terms
from .checks import check_values_kernel
from .launch import Launcher
from .layout import layout_kernel, number_samples_kernel
from .positives import CHUNKS, positives_forward_kernel, positives_grad_kernel
from .rows import gather_rows_kernel, scatter_rows_kernel
from .similarity_grad import similarity_grad_kernel
from .similarity_lse import merge_kernel, similarity_lse_kernel
from .similarity_matrix import similarity_matrix_grad_kernel, similarity_matrix_kernel
from .tiles import programs, sum_pairs_kernel

_MATRIX_BLOCK = 64  # tile of domain_similarity, which reads a table entry for each element
_ELEMENTS = 4096  # of whole rows in one program of the kernels over rows
_NUMBERED = 256  # rows in one program of number_samples_kernel
_MERGE = {"SLOTS": 32, "PARTS": 64}


class TritonBackend(GPUBackend):
    def __init__(self, device_type: str = "cuda", launch: Launcher | None = None, workspace_bytes: int = 256 << 20):
        super().__init__(device_type, workspace_bytes)
        self.launch = launch or Launcher()

    def unusable(self) -> str | None:
        if not torch.cuda.is_available():
            return "there is no CUDA or ROCm device"
        if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
            return "it needs a device of compute capability 8.0 or newer"
        return None

    def preference(self, device: torch.device, dtype: torch.dtype, objective: str | None) -> int:
        return 1

    def find_valid(
        self,
        temperature: Tensor,
        offset: Tensor,
        weight: Tensor,
        domain_mask: Tensor | None,
        sample_ids: Tensor,
        domain_ids: Tensor | None,
        limit: int,
        valid: Tensor,
    ) -> None:
        strides = sample_ids.stride(0), 0 if domain_ids is None else domain_ids.stride(0)
        tensors = temperature, offset, weight, _bytes(domain_mask), sample_ids, domain_ids, valid
        sizes = len(sample_ids), *strides, len(temperature), limit
        self.launch(check_values_kernel, (len(valid),), *tensors, *sizes, BLOCK=CHECKED)

    def number_samples(
        self,
        by_sample: Tensor,
        row: Tensor,
        domain_ids: Tensor | None,
        num_domains: int,
        domain: Tensor,
        first: Tensor,
        end: Tensor,
    ) -> None:
        m, stride = len(row), 0 if domain_ids is None else domain_ids.stride(0)
        args = by_sample, row, domain_ids, domain, first, end, m, m.bit_length(), stride, num_domains
        self.launch(number_samples_kernel, (triton.cdiv(m, _NUMBERED),), *args, BLOCK=_NUMBERED)

    def lay_out(
        self,
        domain: Tensor,
        position: Tensor,
        row: Tensor,
        first: Tensor,
        end: Tensor,
        starts: Tensor | None,
        domain_mask: Tensor | None,
        layout: Layout,
    ) -> None:
        m, k = len(row), layout.spans.shape[1]
        args = domain, position, row, first, end, starts, _bytes(domain_mask), *layout[:-1], m, m.bit_length(), k
        meta = {"BLOCK": self.block, "DOMAINS": triton.next_power_of_2(k), "num_warps": 8}
        self.launch(layout_kernel, (len(layout.tiles),), *args, **meta)

    def gather_rows(self, z: Tensor, order: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
        z, d = _dense_rows(z), z.shape[1]
        rows = z.new_empty(len(order), self.padded_columns(d))
        inv_norm = z.new_empty(len(order), dtype=torch.float32)
        block = _row_block(rows)
        args = z, order, rows, inv_norm, len(order), z.stride(0), d, rows.shape[1], normalize
        self.launch(gather_rows_kernel, (triton.cdiv(len(order), block["ROWS"]),), *args, **block)
        return rows, inv_norm

    def scatter_rows(
        self, grad_rows: Tensor, z: Tensor, slot: Tensor, inv_norm: Tensor, factor: Tensor, normalize: bool
    ) -> Tensor:
        z, (m, d) = _dense_rows(z), z.shape
        grad = torch.empty(m, d, dtype=z.dtype, device=z.device)
        block = _row_block(grad_rows)
        args = grad_rows, z, slot, inv_norm, factor, grad, m, z.stride(0), d, grad_rows.shape[1], normalize
        self.launch(scatter_rows_kernel, (triton.cdiv(m, block["ROWS"]),), *args, **block)
        return grad

    def negatives_forward(self, problem: Problem, strip: Strip, negatives: Negatives) -> None:
        i0, i1, j0, j1 = rectangle = strip.rectangle
        row_tiles, col_tiles = self._tiles(rectangle)
        by_row = negatives.total.new_empty(2, col_tiles, i1 - i0)
        by_col = by_row if rectangle.diagonal else by_row.new_empty(2, row_tiles, j1 - j0)
        self._negatives(similarity_lse_kernel, problem, rectangle, by_row, by_col)
        self._merge(by_row, *(t[i0:i1] for t in negatives))
        if not rectangle.diagonal:
            self._merge(by_col, *(t[j0:j1] for t in negatives))

    def _merge(self, parts: Tensor, total: Tensor, top: Tensor) -> None:
        _, count, slots = parts.shape
        sigmoid = len(top) > 0
        args = total, top if sigmoid else None, parts, slots, count
        self.launch(merge_kernel, (slots // _MERGE["SLOTS"],), *args, SIGMOID=sigmoid, **_MERGE)

    def negatives_grad(self, problem: Problem, rectangle: Rectangle, terms: Terms, h: Tensor, sums: Tensor) -> None:
        parts = terms.lse.new_empty(2, *self._tiles(rectangle))
        self._negatives(similarity_grad_kernel, problem, rectangle, terms.lse, terms.coefficient, h, parts)
        self._sum_pairs(problem, rectangle, parts, sums)

    def positives_forward(self, problem: Problem, strips: Sequence[Strip], base: Tensor) -> Positives:
        slots, softmax = problem.own_slots, problem.objective.positives == "softmax"
        parts = base.new_empty(3 if softmax else 2, CHUNKS, slots)
        weights = base.new_empty(slots) if softmax else None
        count = torch.empty(slots, dtype=torch.int32, device=base.device)
        args = *_of_positives(problem), base, parts, weights, count, len(base).bit_length()
        meta = {"CHUNKS": CHUNKS, "SOFTMAX": softmax}
        self._tile_kernel(positives_forward_kernel, slots // self.block * CHUNKS, problem, *args, **meta)
        none = base.new_empty(0)
        if softmax:
            found = Positives(torch.full_like(weights, -torch.inf), weights, parts[0].sum(0), count)
            self._merge(parts[1:], found.loss, none)
        else:
            slope, loss = parts.sum(1)
            found = Positives(loss, slope, none, count)
        more = len(base) - slots  # of candidates
        return Positives(*(t if t is none else F.pad(t, (0, more)) for t in found)) if more else found

    def positives_grad(self, problem: Problem, rectangle: Rectangle, terms: Terms, h: Tensor, sums: Tensor) -> None:
        row_tiles, col_tiles = self._tiles(rectangle)
        parts = terms.base.new_empty(2, row_tiles, col_tiles)
        args = *_of_positives(problem), terms.base, terms.slope, terms.share, h, parts, *self._place(rectangle)
        meta = {"DIAGONAL": rectangle.diagonal, "SOFTMAX": problem.objective.positives == "softmax", "CHUNKS": CHUNKS}
        self._tile_kernel(positives_grad_kernel, row_tiles * CHUNKS, problem, *args, **meta)
        self._sum_pairs(problem, rectangle, parts, sums)

    def _negatives(self, kernel: triton.JITFunction, problem: Problem, rectangle: Rectangle, *tensors: Tensor) -> None:
        temperature, offset, _, mask = problem.tables
        args = *problem.excluded, temperature, offset, _bytes(mask), *tensors, *self._place(rectangle)
        meta = {"DIAGONAL": rectangle.diagonal, "SIGMOID": problem.objective.negatives == "sigmoid"}
        self._tile_kernel(kernel, programs(*self._tiles(rectangle), rectangle.diagonal), problem, *args, **meta)

    def _tile_kernel(self, kernel: triton.JITFunction, grid: int, problem: Problem, *args, **meta) -> None:
        """``args`` are those between the rows and K."""
        k, d = len(problem.tables.temperature), problem.rows.shape[1]
        self.launch.tile_kernel(kernel, (grid,), [problem.rows], *args, K=k, D=d, BLOCK=self.block, **meta)

    def _sum_pairs(self, problem: Problem, rectangle: Rectangle, parts: Tensor, sums: Tensor) -> None:
        k, place = len(sums), self._place(rectangle)
        args = parts, problem.same.tiles, sums, *place
        self.launch(sum_pairs_kernel, (k * k,), *args, K=k, DIAGONAL=rectangle.diagonal, BLOCK=1024)

    def _tiles(self, rectangle: Rectangle) -> tuple[int, int]:
        """Of its rows and of its columns."""
        i0, i1, j0, j1 = rectangle
        return (i1 - i0) // self.block, (j1 - j0) // self.block

    def _place(self, rectangle: Rectangle) -> tuple[int, int, int, int]:
        """First tiles and how many there are, as kernels take them."""
        return rectangle.i0 // self.block, rectangle.j0 // self.block, *self._tiles(rectangle)

    def similarity_matrix(
        self, x: Tensor, y: Tensor, x_domains: Tensor, y_domains: Tensor, temperature: Tensor, offset: Tensor
    ) -> Tensor:
        mx, my = len(x_domains), len(y_domains)
        s = torch.empty(mx, my, dtype=torch.float32, device=x.device)
        tables = x_domains, y_domains, temperature.contiguous(), offset.contiguous()
        meta = {"K": len(temperature), "D": x.shape[1], "BLOCK": self.block}
        grid = programs(triton.cdiv(mx, self.block), triton.cdiv(my, self.block), diagonal=False)
        self.launch.tile_kernel(similarity_matrix_kernel, (grid,), [x, y], *tables, s, mx, my, **meta)
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
        (mx, my), k = grad.shape, len(sums)
        grid = triton.cdiv(mx, _MATRIX_BLOCK), triton.cdiv(my, _MATRIX_BLOCK)
        g = like.new_empty(grid[0] * _MATRIX_BLOCK, grid[1] * _MATRIX_BLOCK)
        parts = s.new_empty(2, grid[1], len(g), k)
        args = grad, s, x_domains, y_domains, temperature.contiguous(), g, parts, mx, my, grad.stride(0)
        self.launch(similarity_matrix_grad_kernel, grid, *args, K=k, BLOCK=_MATRIX_BLOCK)
        is_of = (x_domains[:, None] == torch.arange(k, device=sums.device)).to(sums.dtype)
        sums += torch.einsum("ra,crb->abc", is_of, parts.sum(1, dtype=sums.dtype)[:, :mx])
        return g, g.T


def _of_positives(problem: Problem) -> tuple[Tensor, ...]:
    temperature, offset, weight, _ = problem.tables
    return *problem.same, problem.layout.spans, temperature, offset, weight.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _dense_rows(z: Tensor) -> Tensor:
    """Rows any distance apart, but of adjacent elements."""
    return z if z.stride(1) == 1 else z.contiguous()


def _row_block(rows: Tensor) -> dict[str, int]:
    """Whole rows for one program: as many as make ``_ELEMENTS``, at most 16."""
    columns = triton.next_power_of_2(rows.shape[1])
    return {"ROWS": max(1, min(64, _ELEMENTS // columns)), "BLOCK_D": columns, "num_warps": max(4, columns // 1024)}
