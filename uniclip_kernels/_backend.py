"""What a backend must supply to the engine, and which backends there are.

A backend is one file with one class; the engine (``_engine``) does everything else. ``find`` loads backends when they are
first asked for and remembers why one cannot be used.
"""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_values
from ._layout import Layout, Rectangle, sort_rows
from ._problem import Inputs, Negatives, Options, Positives, Problem, Terms
from ._version import __version__

#: Modules of this package.
_MODULES = {"triton": ".triton", "cuda": ".cuda", "cpu": ".cpu"}
REFERENCE = "reference"
NAMES = (*_MODULES, REFERENCE)


class Strip(NamedTuple):
    """A rectangle, and room for its dot products in the accumulator dtype, padded to tiles, as long as that lasts."""

    rectangle: Rectangle
    dots: Tensor | None


class Backend(ABC):
    """The primitives of one kind of device.

    R slots of rows, D columns padded to ``padded_columns``; "accumulator" is float32, float64 for float64 rows. Methods that
    return None write into the tensors named in their summary.
    """

    device_type: str
    block: int  # slots in a tile of the layout
    column_multiple: int  # D is padded to a multiple of this
    known_on_host: bool  # may the layout be read on the host without waiting for a device?
    workspace_bytes: int  # budget of one rectangle of the gradient of the similarities
    #: Dot products that the forward pass may keep, so that the backward pass need not compute them again. Without
    #: ``known_on_host`` the rectangles of both may differ, and nothing can be kept.
    kept_bytes = 0
    #: Pairs of slots that take as long as it takes to begin a rectangle; None where kernels do not look at the mask, so
    #: that no rectangle may hold masked pairs.
    overhead: int | None = None

    def padded_columns(self, d: int) -> int:
        return -(-d // self.column_multiple) * self.column_multiple

    def preference(self, device: torch.device, dtype: torch.dtype, objective: str | None) -> int:
        """The default for rows of ``dtype`` on a device is the usable backend that prefers them most."""
        return 0

    def identity(self) -> str:
        """All that shapes and dtypes of the operators' outputs depend on besides their other arguments.

        ``torch.compile`` keeps graphs on disk, for later versions and for other processors that share the disk, and knows
        them by the operators' arguments alone: so this is one of them.
        """
        return f"{__version__}, block {self.block}, kept {self.kept_bytes}"

    def panel_rows(self, rows: Tensor) -> int:
        """Side of the largest square of the gradient that fits the budget."""
        side = int((self.workspace_bytes / rows.element_size()) ** 0.5)
        return max(side // self.block, 1) * self.block

    def workspace(self, rows: Tensor, side: int) -> Tensor:
        """Room for H / τ of a square of that side, in whatever form ``similarity_grad`` takes."""
        return rows.new_empty(side, side)

    @abstractmethod
    def unusable(self) -> str | None:
        """Why this backend cannot run here, or None."""

    def check_values(self, inputs: Inputs, options: Options) -> None:
        """See ``_checks``."""
        check_values(inputs, options)

    def sort_rows(
        self,
        sample_ids: Tensor,
        domain_ids: Tensor | None,
        num_domains: int,
        domain_mask: Tensor | None,
        slots: int,
        starts: Tensor | None,
    ) -> Layout:
        """The layout of (N,) int64 ids, but for groups; see ``_layout``."""
        return sort_rows(sample_ids, domain_ids, num_domains, domain_mask, self.block, slots, starts)

    @abstractmethod
    def gather_rows(self, z: Tensor, order: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
        """(R, padded D) unit rows of ``z`` in slot order, zero where empty, and (R,) 1 / max(norm, 1e-12).

        The dtype of the rows is that of the operands of all products, and up to the backend; int16 is fixed point.
        """

    @abstractmethod
    def scatter_rows(
        self, grad_rows: Tensor, z: Tensor, slot: Tensor, inv_norm: Tensor, factor: Tensor, normalize: bool
    ) -> Tensor:
        """Gradient of ``gather_rows`` times the 0-dim ``factor``: (M, D) in the dtype of z, 0 for rows without a slot."""

    @abstractmethod
    def negatives_forward(self, problem: Problem, strip: Strip, negatives: Negatives) -> None:
        """Add the negatives in the rectangle to the running ``negatives``, for its rows and, by symmetry, its columns.

        Leaves dot products where the strip has room for them.
        """

    @abstractmethod
    def positives_forward(self, problem: Problem, strips: Sequence[Strip], base: Tensor) -> Positives:
        """Sums over the positives of the slots of own rows; of other slots anything that is finite, with count 0.

        ``strips`` are all rectangles, with dot products as ``negatives_forward`` left them.
        """

    @abstractmethod
    def similarity_grad(
        self, problem: Problem, strip: Strip, terms: Terms, sums: Tensor, work: Tensor, both_sides: bool
    ) -> tuple[Tensor, Tensor]:
        """H / τ of the rectangle and, for ``both_sides``, its transpose, in the dtype of the rows, living in ``work``.

        ``Objective`` says what H is. Adds Σ H and Σ H s over unordered pairs to ``sums`` (2, K, K, 2) float64: of negatives at
        [0, d_i, d_j], d_i <= d_j, of positives at [1, d_i, d_j]. The two may have rows and columns of zeros beyond the
        rectangle's.
        """

    def pack_rows(self, rows: Tensor) -> Tensor:
        """The rows in the form that ``accumulate`` takes them: still one index a slot, to be cut between tiles only."""
        return rows

    @abstractmethod
    def accumulate(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """out += a @ b for packed rows b, in the dtype of ``out``; a may be wider and taller than needed, by zeros."""

    @abstractmethod
    def similarity_matrix(
        self, x: Tensor, y: Tensor, x_domains: Tensor, y_domains: Tensor, temperature: Tensor, offset: Tensor
    ) -> Tensor:
        """(Mx, My) s of gathered rows, in the accumulator dtype; domains are (Mx,) and (My,) int32."""

    @abstractmethod
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
        """grad / τ in the dtype of ``like`` and its transpose; adds Σ grad and Σ grad s to ``sums`` (K, K, 2) at [d_x, d_y]."""


@functools.cache
def _load(name: str) -> tuple[Backend | None, str | None]:
    try:
        backend = importlib.import_module(_MODULES[name], __package__).BACKEND
    except (ImportError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"
    return backend, backend.unusable()


def backends() -> dict[str, str | None]:
    """Every backend with the reason why it is not usable on this machine, or None if it is."""
    return {name: _load(name)[1] for name in _MODULES} | {REFERENCE: None}


def check_backend(name: str | None) -> None:
    if name is not None and not (isinstance(name, str) and name in NAMES):
        raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))} or None, got {name!r}")


@torch.compiler.assume_constant_result
def choose(name: str | None, device: torch.device, dtype: torch.dtype, objective: str | None = None) -> tuple[str, str]:
    """The backend that will run and its identity: ``name`` if it can, or the best usable one for rows of that kind."""
    check_backend(name)
    if name is None:
        usable = [n for n in _MODULES if _load(n)[1] is None and _load(n)[0].device_type == device.type]
        name = max(usable, key=lambda n: _load(n)[0].preference(device, dtype, objective), default=REFERENCE)
    if name == REFERENCE:
        return name, ""
    backend, reason = _load(name)
    if reason is not None:
        raise ValueError(f"backend {name!r} is not usable here: {reason}")
    if backend.device_type != device.type:
        raise ValueError(f"backend {name!r} needs tensors on {backend.device_type}, got {device.type}")
    return name, backend.identity()


@torch.compiler.assume_constant_result
def reads_on_host(name: str) -> bool:
    """Whether that backend reads ids and masks on the host, so that it need not be told what they hold."""
    return name == REFERENCE or find(name).known_on_host


def find(name: str) -> Backend:
    backend, reason = _load(name)
    if backend is None:
        raise RuntimeError(f"backend {name!r} is not usable here: {reason}")
    return backend
