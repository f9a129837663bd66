"""The operators: schemas, fakes and autograd. Each runs the engine with the backend named by its last argument.

To ``torch.compile`` they are opaque: shapes follow from M, D, K, the sizes of domains and the backend alone, so that one graph
serves every M.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _engine
from ._backend import find
from ._checks import check_values
from ._layout import Known, Layout, empty_layout, padded_rows
from ._library import LIBRARY, NAMESPACE
from ._problem import Statistics, Tables, accumulator_dtype
from ._tables import mirrored

_TAGS = (torch.Tag.needs_fixed_stride_order,)


class _Saved(NamedTuple):
    """What ``mp_nce_fwd`` returns behind the loss and the counts, and ``mp_nce_bwd`` takes."""

    tables: Tensor  # (2, K, K): temperature and offset, symmetric
    dots: Tensor  # dot products of the first rectangles
    statistics: Statistics
    layout: Layout

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Saved:
        tables, dots, *rest = tensors
        n = len(Statistics._fields)
        return cls(tables, dots, Statistics(*rest[:n]), Layout(*rest[n:]))

    def flat(self) -> tuple[Tensor, ...]:
        return self.tables, self.dots, *self.statistics, *self.layout


def _tensors(*names: str) -> str:
    return ", ".join(f"Tensor {name}" for name in names)


_SAVED = _tensors("tables", "dots", *Statistics._fields, *(f"layout_{name}" for name in Layout._fields))
_KNOWN = "SymInt[]? domain_sizes, bool[]? allowed_pairs"  # a ``Known``
LIBRARY.define(
    "mp_nce_fwd(Tensor embeddings, Tensor sample_ids, Tensor? domain_ids, Tensor temperature, Tensor offset, Tensor weight,"
    f" Tensor? domain_mask, bool keep, bool ignore_domains, {_KNOWN}, bool normalize, str backend)"
    f" -> (Tensor row_loss, Tensor num_positives, {_SAVED})",
    tags=_TAGS,
)
LIBRARY.define(
    "mp_nce_bwd(Tensor grad, Tensor embeddings, Tensor sample_ids, Tensor? domain_ids, Tensor weight, Tensor? domain_mask,"
    f" {_SAVED}, bool need_embeddings, bool ignore_domains, {_KNOWN}, bool normalize, str backend)"
    " -> (Tensor grad_embeddings, Tensor grad_temperature, Tensor grad_offset)",
    tags=_TAGS,
)
LIBRARY.define(
    "domain_similarity_fwd(Tensor x, Tensor y, Tensor? x_domain_ids, Tensor? y_domain_ids, Tensor temperature, Tensor offset,"
    " bool ignore_domains, bool normalize, str backend) -> Tensor",
    tags=_TAGS,
)
LIBRARY.define(
    "domain_similarity_bwd(Tensor grad, Tensor s, Tensor x, Tensor y, Tensor? x_domain_ids, Tensor? y_domain_ids,"
    " Tensor temperature, bool ignore_domains, bool need_x, bool need_y, bool normalize, str backend)"
    " -> (Tensor grad_x, Tensor grad_y, Tensor grad_temperature, Tensor grad_offset)",
    tags=_TAGS,
)


def _implement(name: str):
    """Register the eager implementation, on every device, outside of autocast: the engine chooses its own dtypes."""

    def register(function):
        def without_autocast(*args):
            device = args[0].device.type
            if not torch.is_autocast_enabled(device):
                return function(*args)
            with torch.autocast(device, enabled=False):
                return function(*args)

        LIBRARY.impl(name, without_autocast, "CompositeExplicitAutograd")
        return function

    return register


def _fake(name: str):
    return torch.library.register_fake(f"{NAMESPACE}::{name}", lib=LIBRARY)


def _autograd(name: str, setup_context, backward) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY)


def _or_empty(grad: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if grad is None else grad


# ---------------------------------------------------------------------------------------------------------------- mp_nce


@_implement("mp_nce_fwd")
def _mp_nce_fwd(z, sample_ids, domain_ids, temperature, offset, weight, mask, keep, ignore_domains, *known_and_options):
    *known, normalize, backend = known_and_options
    chosen, symmetric = find(backend), mirrored(temperature, offset)
    num_domains = None if ignore_domains else temperature.shape[0]
    tables = Tables(*symmetric, weight, mask)
    chosen.check_values(*tables, sample_ids, domain_ids, num_domains)
    ids = sample_ids, None if ignore_domains else domain_ids
    done = _engine.mp_nce_forward(chosen, z, *ids, tables, Known(*known), normalize, keep)
    saved = _Saved(symmetric, done.dots, done.statistics, done.layout)
    return done.loss, done.num_positives, *saved.flat()


@_fake("mp_nce_fwd")
def _mp_nce_fwd_fake(
    z, sample_ids, domain_ids, temperature, offset, weight, mask, keep, ignore_domains, *known_and_options
):
    sizes, _, _, backend = known_and_options
    chosen, accumulator = find(backend), accumulator_dtype(z.dtype)
    m, k = z.shape[0], temperature.shape[0]
    slots = padded_rows(m, k, chosen.block, sizes)
    statistics = (z.new_empty(slots, dtype=torch.int32 if f == "count" else accumulator) for f in Statistics._fields)
    saved = _Saved(
        tables=z.new_empty(2, k, k, dtype=accumulator),
        dots=z.new_empty(_engine.kept_elements(chosen, slots, k, accumulator, keep), dtype=accumulator),
        statistics=Statistics(*statistics),
        layout=empty_layout(m, k, slots, chosen.block, z),
    )
    return z.new_empty(m, dtype=accumulator), z.new_empty(m, dtype=torch.int32), *saved.flat()


@_implement("mp_nce_bwd")
def _mp_nce_bwd(grad, z, sample_ids, domain_ids, weight, mask, *saved_and_options):
    *tensors, need_embeddings, ignore_domains, sizes, allowed, normalize, backend = saved_and_options
    saved = _Saved.of(tensors)
    tables, known = Tables(*saved.tables, weight, mask), Known(sizes, allowed)
    ids = sample_ids, None if ignore_domains else domain_ids
    grad_z, *grads = _engine.mp_nce_backward(
        find(backend), grad, z, *ids, tables, known, *saved[1:], normalize, need_embeddings
    )
    return _or_empty(grad_z, z), *grads


@_fake("mp_nce_bwd")
def _mp_nce_bwd_fake(grad, z, sample_ids, domain_ids, weight, mask, tables, *saved_and_options):
    need_embeddings = saved_and_options[-6]
    return z.new_empty(z.shape if need_embeddings else (0,)), *(torch.empty_like(t) for t in tables)


def _mp_nce_setup_context(ctx, inputs, output):
    z, sample_ids, domain_ids, _, _, weight, mask, _, *ctx.options = inputs
    ctx.save_for_backward(z, sample_ids, domain_ids, weight, mask, *output[2:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _mp_nce_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 13
    need_embeddings = ctx.needs_input_grad[0]
    grad_z, grad_temperature, grad_offset = torch.ops.uniclip_kernels.mp_nce_bwd(
        grad, *ctx.saved_tensors, need_embeddings, *ctx.options
    )
    return grad_z if need_embeddings else None, None, None, grad_temperature, grad_offset, *(None,) * 8


# ----------------------------------------------------------------------------------------------------- domain_similarity


def _domains(ids: Tensor | None, rows: Tensor, temperature: Tensor, ignore_domains: bool) -> Tensor:
    """Of the rows, int32. Ids out of range may not have been looked for: whatever they are, no table is read out of bounds."""
    if ids is None or ignore_domains:
        return torch.zeros(rows.shape[0], dtype=torch.int32, device=rows.device)
    return ids.long().clamp(0, temperature.shape[0] - 1).int()


@_implement("domain_similarity_fwd")
def _domain_similarity_fwd(x, y, x_ids, y_ids, temperature, offset, ignore_domains, normalize, backend):
    given = {n: ids for n, ids in (("x_domain_ids", x_ids), ("y_domain_ids", y_ids)) if ids is not None}
    check_values(temperature, offset, given, None if ignore_domains else temperature.shape[0])
    domains = (_domains(ids, z, temperature, ignore_domains) for ids, z in ((x_ids, x), (y_ids, y)))
    return _engine.similarity_forward(find(backend), x, y, *domains, temperature, offset, normalize)


@_fake("domain_similarity_fwd")
def _domain_similarity_fwd_fake(x, y, *_):
    return x.new_empty(x.shape[0], y.shape[0], dtype=accumulator_dtype(x.dtype))


@_implement("domain_similarity_bwd")
def _domain_similarity_bwd(grad, s, x, y, x_ids, y_ids, temperature, ignore_domains, *options):
    need_x, need_y, normalize, backend = options
    domains = (_domains(ids, z, temperature, ignore_domains) for ids, z in ((x_ids, x), (y_ids, y)))
    grad_x, grad_y, *grads = _engine.similarity_backward(
        find(backend), grad, s, x, y, *domains, temperature, normalize, need_x, need_y
    )
    return _or_empty(grad_x, x), _or_empty(grad_y, y), *grads


@_fake("domain_similarity_bwd")
def _domain_similarity_bwd_fake(grad, s, x, y, x_ids, y_ids, temperature, ignore_domains, need_x, need_y, *_):
    grads = (z.new_empty(z.shape if need else (0,)) for z, need in ((x, need_x), (y, need_y)))
    return *grads, torch.empty_like(temperature), torch.empty_like(temperature)


def _similarity_setup_context(ctx, inputs, output):
    x, y, x_ids, y_ids, temperature, _, *ctx.options = inputs
    ctx.save_for_backward(output, x, y, x_ids, y_ids, temperature)


def _similarity_backward(ctx, grad):
    ignore_domains, *options = ctx.options
    need_x, need_y = ctx.needs_input_grad[:2]
    grad_x, grad_y, grad_temperature, grad_offset = torch.ops.uniclip_kernels.domain_similarity_bwd(
        grad, *ctx.saved_tensors, ignore_domains, need_x, need_y, *options
    )
    grads = (g if need else None for g, need in ((grad_x, need_x), (grad_y, need_y)))
    return *grads, None, None, grad_temperature, grad_offset, None, None, None


# ------------------------------------------------------------------------------------------------------------- autograd


def _no_second_derivative(function: str):
    def setup_context(ctx, inputs, output):
        pass

    def backward(ctx, *_):
        raise RuntimeError(
            f"{function} has no second derivative: call it with backend='reference' to differentiate its gradient"
        )

    return setup_context, backward


_autograd("mp_nce_fwd", _mp_nce_setup_context, _mp_nce_backward)
_autograd("mp_nce_bwd", *_no_second_derivative("mp_nce"))
_autograd("domain_similarity_fwd", _similarity_setup_context, _similarity_backward)
_autograd("domain_similarity_bwd", *_no_second_derivative("domain_similarity"))
