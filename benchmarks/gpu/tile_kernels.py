"""A problem for one launch of each kernel over tiles, in any configuration, with the right answer to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from uniclip_kernels._backend import Strip
from uniclip_kernels._layout import Rectangle
from uniclip_kernels._objectives import OBJECTIVES
from uniclip_kernels._problem import Groups, Negatives, Problem, Tables, Terms
from uniclip_kernels.triton import TritonBackend, tuning
from uniclip_kernels.triton.launch import Launcher
from uniclip_kernels.triton.similarity_grad import similarity_grad_kernel
from uniclip_kernels.triton.similarity_lse import similarity_lse_kernel

from ..measure import WrongAnswerError
from ..providers import Step

_TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}  # of H, by its largest entry
_LSE_TOLERANCE = 1e-4  # sums are in float32 whatever the rows are
_PAIR = 0, 1  # domains of the rows and of the columns
_SOME = 256  # rows of float64 similarities at a time; of H the first of them are looked at


class TileKernels:
    """Two domains of rows, each of a sample of its own: all pairs of the rectangle between the domains are negatives."""

    def __init__(self, tiles: int, d: int, dtype: torch.dtype, device: str) -> None:
        self.device_type = device
        self.launcher = _launcher(device)
        self.arch = tuning.architecture(torch.device(device, 0)) if device == "cuda" else "80"
        backend = TritonBackend(device, self.launcher)
        side = self.side = tiles * backend.block
        ids = torch.arange(2 * side, device=device)
        layout = backend.sort_rows(ids, ids // side, 2, None, 2 * side, None)
        rows, inv_norm = backend.gather_rows(torch.randn(2 * side, d, device=device).to(dtype), layout.order, True)
        tables = ([[0.07, 0.06], [0.06, 0.08]], [[0.1, 0.02], [0.02, 0.05]], [[1.0, 1.0], [1.0, 1.0]])
        tables = Tables(*(torch.tensor(table, device=device) for table in tables), None)
        samples = Groups(layout.ids, layout.tiles)
        objective, sizes = OBJECTIVES["mp_nce"], [side, side]
        self.problem = Problem(
            objective, rows, inv_norm, layout, [2 * side], [(0, 0)], samples, samples, tables, sizes, None
        )
        self.rectangle = Rectangle(0, side, side, 2 * side)
        self.sums = torch.zeros(2, 2, 2, dtype=torch.float64, device=device)
        self.work = rows.new_empty(side, side)
        starts = [(first, start) for first in (0, side) for start in range(first, first + side, _SOME)]
        lse = torch.cat([self._similarities(start).logsumexp(1) for _, start in starts]).float()
        none = lse.new_empty(0)
        self.terms = Terms(lse, torch.rand(len(rows), device=device), none, none, none)
        self.running = Negatives(torch.empty_like(lse), none)

    def configurations(self) -> Iterator[tuple[triton.JITFunction, dict]]:
        for kernel in (similarity_lse_kernel, similarity_grad_kernel):
            for configuration in tuning.configurations(kernel, self.arch, self.problem.rows.dtype):
                yield kernel, configuration

    def prepare(self, kernel: triton.JITFunction, configuration: dict) -> Step:
        """A launch of that kernel alone, once what comes of it is right. Raises WrongAnswerError, and what Triton does."""
        chosen = configuration | {"PRECISION": tuning.precision(self.arch, self.problem.rows.dtype)}
        run = self._lse if kernel is similarity_lse_kernel else self._grad
        run(TritonBackend(self.device_type, _Configured(self.launcher, chosen)), check=True)
        alone = TritonBackend(self.device_type, _Configured(self.launcher, chosen, only=kernel))
        return lambda: run(alone)

    def _lse(self, backend: TritonBackend, check: bool = False) -> list[Tensor]:
        if check:
            self.running.total.fill_(-torch.inf)
        backend.negatives_forward(self.problem, Strip(self.rectangle, None), self.running)
        if check:
            _close("lse", self.running.total, self.terms.lse, _LSE_TOLERANCE)
        return []

    def _grad(self, backend: TritonBackend, check: bool = False) -> list[Tensor]:
        h, lse, coefficient = self.work, self.terms.lse, self.terms.coefficient
        backend.negatives_grad(self.problem, self.rectangle, self.terms, h, self.sums)
        if check:
            s = self._similarities(0)
            of_rows, of_columns = slice(0, len(s)), slice(self.side, 2 * self.side)
            expected = (s - lse[of_rows, None]).exp() * coefficient[of_rows, None]
            expected += (s - lse[None, of_columns]).exp() * coefficient[None, of_columns]
            _close("H", h[of_rows], expected / self.problem.tables.temperature[_PAIR], _TOLERANCE[h.dtype])
        return []

    def _similarities(self, start: int) -> Tensor:
        """Of some rows from that slot on with those of the other domain, in float64."""
        rows, other = self.problem.rows, 0 if start >= self.side else self.side
        end = min(start + _SOME, self.side if start < self.side else 2 * self.side)
        dots = rows[start:end].double() @ rows[other : other + self.side].double().T
        tables = self.problem.tables
        return (dots - tables.offset[_PAIR]) / tables.temperature[_PAIR].double()


class _Configured(Launcher):
    """Launches through another launcher in a given configuration; ``only`` that kernel, if one is named."""

    def __init__(self, launcher: Launcher, chosen: dict, only: triton.JITFunction | None = None) -> None:
        self.launcher, self.chosen, self.only = launcher, chosen, only

    def __call__(self, kernel: triton.JITFunction, grid: Sequence[int], *args, **meta) -> None:
        if self.only in (None, kernel):
            self.launcher(kernel, grid, *args, **meta)

    def configuration(self, kernel: triton.JITFunction, rows: Tensor) -> dict:
        return self.chosen


def _launcher(device: str) -> Launcher:
    if device == "cuda":
        return Launcher()
    from tests.emulation.triton_backends import interpreted

    return interpreted().launch


def _close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = ((found.double() - expected).abs().max() / expected.abs().max()).item()
    if not error <= tolerance:  # so that NaN fails
        raise WrongAnswerError(f"{what} is off by {error:.1e} of the largest entry")
