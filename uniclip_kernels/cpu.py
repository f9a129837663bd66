"""The CPU backend: C++ tiles and matrix products, with the vector and tile instructions that the processor has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _extension
from ._backend import Backend, Strip
from ._library import LIBRARY
from ._problem import Groups, Negatives, Positives, Problem, Terms

_C = _extension.load("_C")
_ops = torch.ops.uniclip_kernels

# The primitives write into tensors that they are given and return nothing: so do their fakes.
for _name in (
    "gather_rows",
    "scatter_rows",
    "negatives_forward",
    "positives_forward",
    "similarity_grad",
    "pack_rows",
    "accumulate",
    "similarity_matrix",
    "similarity_matrix_grad",
):
    torch.library.register_fake(f"uniclip_kernels::cpu_{_name}", lambda *_: None, lib=LIBRARY)


class CPUBackend(Backend):
    device_type = "cpu"
    block = _C.cpu_block
    _spare = _C.cpu_spare  # columns of a panel of H that are none of it
    column_multiple = 32
    known_on_host = True
    workspace_bytes = 9 << 19  # small enough to stay in the last-level cache
    kept_bytes = 16 << 20
    bfloat16_products = getattr(torch, _C.cpu_bfloat16_products())  # int16 stands for fixed point

    def unusable(self) -> str | None:
        return None

    def _dtype_of_products(self, dtype: torch.dtype, normalize: bool) -> torch.dtype:
        if dtype == torch.bfloat16 and (normalize or self.bfloat16_products != torch.int16):
            return self.bfloat16_products
        return torch.float64 if dtype == torch.float64 else torch.float32

    def gather_rows(self, z: Tensor, order: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
        columns, dtype = self.padded_columns(z.shape[1]), self._dtype_of_products(z.dtype, normalize)
        inv_norm = z.new_empty(len(order), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        precise = torch.empty((), dtype=torch.bool)
        rows = z.new_empty(len(order), columns, dtype=dtype)
        _ops.cpu_gather_rows(z, order, normalize, rows, inv_norm, precise)
        if not precise:
            rows = z.new_empty(len(order), columns, dtype=torch.float32)
            _ops.cpu_gather_rows(z, order, normalize, rows, inv_norm, precise)
        return rows, inv_norm

    def scatter_rows(
        self, grad_rows: Tensor, z: Tensor, slot: Tensor, inv_norm: Tensor, factor: Tensor, normalize: bool
    ) -> Tensor:
        grad = torch.empty(z.shape, dtype=z.dtype)
        _ops.cpu_scatter_rows(grad_rows, z, slot, inv_norm, factor, normalize, grad)
        return grad

    def panel_rows(self, rows: Tensor) -> int:
        side = super().panel_rows(rows)
        return side // _C.cpu_tile * _C.cpu_tile or side  # whole tiles, if there is room for one

    def workspace(self, rows: Tensor, side: int) -> Tensor:
        return rows.new_empty(2, side, side + self._spare)  # H and its transpose

    def negatives_forward(self, problem: Problem, strip: Strip, negatives: Negatives) -> None:
        tensors = *_similarities(problem, problem.excluded), *strip.rectangle, *negatives
        _ops.cpu_negatives_forward(*tensors, _or_empty(strip.dots, negatives.total))

    def positives_forward(self, problem: Problem, strips: Sequence[Strip], base: Tensor) -> Positives:
        softmax = problem.objective.positives == "softmax"
        lse = torch.full_like(base, -torch.inf) if softmax else base.new_empty(0)
        loss, slope, count = torch.zeros_like(base), torch.zeros_like(base), torch.zeros_like(base, dtype=torch.int32)
        tensors = *_similarities(problem, problem.same), problem.tables.weight, base
        for rectangle, dots in strips:
            _ops.cpu_positives_forward(*tensors, *rectangle, _or_empty(dots, base), lse, loss, slope, count)
        count[problem.own_slots :] = 0
        return Positives(lse, slope, loss, count) if softmax else Positives(loss, slope, lse, count)

    def similarity_grad(
        self, problem: Problem, strip: Strip, terms: Terms, sums: Tensor, work: Tensor, both_sides: bool
    ) -> tuple[Tensor, Tensor]:
        h, h_transposed = work
        _, *kinds = problem.objective
        pairs = *_similarities(problem, problem.excluded), problem.same.ids, problem.tables.weight
        tensors = *pairs, *(kind == "softmax" for kind in kinds), *terms
        out = sums, h, h_transposed if both_sides else _or_empty(None, h)
        _ops.cpu_similarity_grad(*tensors, *strip.rectangle, _or_empty(strip.dots, terms.lse), *out)
        return h, h_transposed

    def pack_rows(self, rows: Tensor) -> Tensor:
        if rows.element_size() > 2:
            return rows
        packed = rows.new_empty(rows.shape)
        if rows.dtype == torch.int16:  # strips of columns
            packed = rows.new_empty(rows.shape[1] // self.block, len(rows), self.block).transpose(0, 1)
        _ops.cpu_pack_rows(rows, packed)
        return packed

    def accumulate(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        _ops.cpu_accumulate(out, a, b)

    def similarity_matrix(
        self, x: Tensor, y: Tensor, x_domains: Tensor, y_domains: Tensor, temperature: Tensor, offset: Tensor
    ) -> Tensor:
        s = x.new_empty(len(x_domains), len(y_domains), dtype=_accumulator(x))
        _ops.cpu_similarity_matrix(x, y, x_domains, y_domains, temperature, offset, s)
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
        mx, my = (-(-n // self.block) * self.block for n in grad.shape)
        g, g_transposed = like.new_empty(mx, my + self._spare), like.new_empty(my, mx + self._spare)
        _ops.cpu_similarity_matrix_grad(grad, s, x_domains, y_domains, temperature, sums, g, g_transposed)
        return g, g_transposed


def _or_empty(matrix: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, 0) if matrix is None else matrix


def _accumulator(rows: Tensor) -> torch.dtype:
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def _similarities(problem: Problem, groups: Groups) -> tuple[Tensor, ...]:
    return problem.rows, *groups, problem.tables.temperature, problem.tables.offset


BACKEND = CPUBackend()
