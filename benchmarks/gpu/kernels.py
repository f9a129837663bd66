"""The Triton kernels over tiles, each in every configuration of ``tuning``, on a rectangle off the diagonal."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from uniclip_kernels._layout import Rectangle, sort_rows
from uniclip_kernels._problem import Problem

from ..measure import WrongAnswerError
from ..providers import OURS
from ..rows import Row
from .task import Context, Note, Task
from .timing import rows

PART = "kernels"
TILES = 88  # of a side: whole waves of 132 multiprocessors, and 254 MB of H in 16 bits
CASES = ((torch.bfloat16, 512), (torch.bfloat16, 768), (torch.bfloat16, 1024), (torch.float32, 512))
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}  # of the largest entry of H; lse is better than either


def tasks(context: Context) -> list[Task]:
    return [
        Task(
            PART,
            f"D = {d}, {str(dtype).removeprefix('torch.')}",
            functools.partial(_kernels, dtype, d),
            15,
            needs_build=False,
        )
        for dtype, d in (CASES[-1:] if context.dry_run else CASES)
    ]


def _kernels(dtype: torch.dtype, d: int, context: Context) -> Iterator[Row | Note]:
    if "triton" in context.unusable:
        yield Note(f"left out: {context.unusable['triton']}")
        return
    from uniclip_kernels.triton import tuning
    from uniclip_kernels.triton.similarity_grad import similarity_grad_kernel
    from uniclip_kernels.triton.similarity_lse import similarity_lse_kernel

    tiles, d = (1, 16) if context.dry_run else (TILES, d)
    arch = "80" if context.dry_run else tuning.architecture(torch.device("cuda", 0))
    steps, fields = {}, {}
    bench = _Bench(tiles, d, dtype, context)
    for kernel, prepare in ((similarity_lse_kernel, bench.forward), (similarity_grad_kernel, bench.gradient)):
        for configuration in tuning.configurations(kernel, arch, dtype):
            text = ", ".join(f"{name}={value}" for name, value in configuration.items())
            field = {
                "part": PART,
                "objective": kernel.__name__,
                "provider": f"{OURS}: {text}",
                "mode": "off the diagonal",
                "n": bench.side,
                "m": bench.side,
                "d": d,
                "dtype": str(dtype).removeprefix("torch."),
                "work": 2 * bench.side**2 * d,
            }
            name = f"{kernel.__name__} {text}"
            try:
                steps[name] = prepare({"PRECISION": tuning.precision(arch, dtype)} | configuration)
                fields[name] = field
            except Exception as error:  # a configuration that does not fit this part is no reason to leave out others
                word = "refused" if isinstance(error, WrongAnswerError) else "failed"
                note = f"{word}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                yield context.row(p20=None, p50=None, p80=None, repetitions=0, **field | {"note": note})
    yield from rows(context, steps, 0 if context.dry_run else 3.0, fields)


class _Bench:
    """Two domains of rows, all of samples of their own: all pairs of the rectangle between the domains are negatives."""

    def __init__(self, tiles: int, d: int, dtype: torch.dtype, context: Context) -> None:
        self.launcher, backend = _launcher(context.dry_run)
        self.make, where = backend, context.device.tensors
        self.side = tiles * backend(self.launcher).block
        m = 2 * self.side
        z = torch.randn(m, d, device=where).to(dtype)
        ids, domains = torch.arange(m, device=where), torch.arange(m, device=where) // self.side
        maker = self.make(self.launcher)
        layout = sort_rows(ids, domains, 2, None, maker.block)
        rows, _ = maker.gather_rows(z, layout.order, True)
        temperature = torch.tensor([[0.07, 0.06], [0.06, 0.08]], device=where)
        offset, weight = torch.tensor([[0.1, 0.02], [0.02, 0.05]], device=where), torch.ones(2, 2, device=where)
        self.problem = Problem(rows, layout, temperature, offset, weight, None)
        self.rectangle = Rectangle(0, self.side, self.side, 2 * self.side)
        self.sums = torch.zeros(2, 2, 2, dtype=torch.float64, device=where)
        self.work = rows.new_empty(self.side, self.side)
        x, y = (rows[i : i + self.side].double() for i in (0, self.side))
        some = min(self.side, 256)
        self.s = (x[:some] @ y.T - offset[0, 1]) / temperature[0, 1].double()
        self.lse = torch.zeros(len(rows), device=where)
        for start, rest in ((0, (x, y)), (self.side, (y, x))):
            for i in range(0, self.side, some):  # a few rows at a time, as they are float64
                s = (rest[0][i : i + some] @ rest[1].T - offset[0, 1]) / temperature[0, 1].double()
                self.lse[start + i : start + i + len(s)] = s.logsumexp(1)
        self.coefficient = torch.rand(len(rows), device=where)

    def forward(self, configuration: dict):
        """The launch of the kernel alone, after a check of what comes of it and of the merges behind it."""
        lse = torch.full_like(self.lse, -torch.inf)
        self._backend(configuration, whole=True).similarity_lse(self.problem, self.rectangle, lse, None)
        _close("lse", lse[: 2 * self.side], self.lse[: 2 * self.side], 1e-4)
        backend = self._backend(configuration, whole=False)
        return lambda: backend.similarity_lse(self.problem, self.rectangle, lse, None) or []

    def gradient(self, configuration: dict):
        arguments = self.problem, self.rectangle, self.lse, self.coefficient, None, self.sums, self.work
        h, _ = self._backend(configuration, whole=True).similarity_grad(*arguments)
        some, columns = len(self.s), slice(self.side, 2 * self.side)
        mine = (self.s - self.lse[:some, None]).exp() * self.coefficient[:some, None]
        others = (self.s - self.lse[None, columns]).exp() * self.coefficient[None, columns]
        expected = (mine + others) / self.problem.temperature[0, 1]
        _close("H", h[:some], expected, _TOLERANCE[self.problem.rows.dtype])
        backend = self._backend(configuration, whole=False)
        return lambda: list(backend.similarity_grad(*arguments))

    def _backend(self, configuration: dict, whole: bool):
        return self.make(_Configured(self.launcher, configuration, whole))


class _Configured:
    """A launcher of the kernels over tiles in one configuration; of others only if the ``whole`` primitive is wanted."""

    def __init__(self, launcher, configuration: dict, whole: bool) -> None:
        self.launcher, self.configuration, self.whole = launcher, configuration, whole

    def __call__(self, *args, **meta) -> None:
        if self.whole:
            self.launcher(*args, **meta)

    def tile_kernel(self, kernel, grid, rows: Tensor, *args, **meta) -> None:
        self.launcher(kernel, grid, rows, *args, **meta, **self.configuration)


def _launcher(dry_run: bool):
    """What launches kernels, and what makes a backend of a launcher."""
    from uniclip_kernels.triton import TritonBackend

    if dry_run:
        from tests.emulation.triton_backends import interpreted

        return interpreted().launch, functools.partial(TritonBackend, "cpu")
    from uniclip_kernels.triton.launch import Launcher

    return Launcher(), functools.partial(TritonBackend, "cuda")


def _close(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = ((found.double() - expected).abs().max() / expected.abs().max()).item()
    if not error <= tolerance:  # so that NaN fails
        raise WrongAnswerError(f"{what} is off by {error:.1e} of the largest entry")
