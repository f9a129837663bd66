"""The operators: schemas, fakes and autograd. Each runs the engine with the backend named by its last argument.

To ``torch.compile`` they are opaque: shapes follow from M, D, K, the sizes of domains and the backend alone, so that one graph
serves every M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _engine
from ._backend import find
from ._checks import check_values
from ._layout import Known, Layout, empty_layout, padded_rows
from ._problem import Problem, accumulator_dtype
from ._tables import mirrored

_NAMESPACE = "uniclip_kernels"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")
_TAGS = (torch.Tag.needs_fixed_stride_order,)

# The saved tensors of mp_nce, in the order in which the forward op returns and the backward op takes them.
# `tables` (2, K, K) are temperature and offset with the lower triangle mirrored from the upper one.
_SAVED = "Tensor tables, Tensor rows, Tensor inv_norm, Tensor lse, Tensor coefficient, Tensor kept, " + ", ".join(
    f"Tensor {n}" for n in Layout._fields
)
_TABLES = "Tensor temperature, Tensor offset, Tensor weight, Tensor? domain_mask"
_KNOWN = "SymInt[]? domain_sizes, bool[]? allowed_pairs"  # a ``Known``
_LIBRARY.define(
    f"mp_nce_fwd(Tensor embeddings, Tensor sample_ids, Tensor? domain_ids, {_TABLES}, bool ignore_domains, bool keep,"
    f" {_KNOWN}, str reduction, bool normalize, str backend) -> (Tensor loss, {_SAVED})",
    tags=_TAGS,
)
_LIBRARY.define(
    f"mp_nce_bwd(Tensor grad, Tensor embeddings, Tensor weight, Tensor? domain_mask, {_SAVED}, bool need_embeddings,"
    f" {_KNOWN}, str reduction, bool normalize, str backend)"
    " -> (Tensor grad_embeddings, Tensor grad_temperature, Tensor grad_offset)",
    tags=_TAGS,
)
_LIBRARY.define(
    "domain_similarity_fwd(Tensor x, Tensor y, Tensor? x_domain_ids, Tensor? y_domain_ids, Tensor temperature, Tensor offset,"
    " bool ignore_domains, bool normalize, str backend)"
    " -> (Tensor s, Tensor x_rows, Tensor y_rows, Tensor x_inv_norm, Tensor y_inv_norm)",
    tags=_TAGS,
)
_LIBRARY.define(
    "domain_similarity_bwd(Tensor grad, Tensor s, Tensor x, Tensor y, Tensor? x_domain_ids, Tensor? y_domain_ids,"
    " Tensor temperature, Tensor x_rows, Tensor y_rows, Tensor x_inv_norm, Tensor y_inv_norm, bool ignore_domains,"
    " bool normalize, str backend)"
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

        _LIBRARY.impl(name, without_autocast, "CompositeExplicitAutograd")
        return function

    return register


def _fake(name: str):
    return torch.library.register_fake(f"{_NAMESPACE}::{name}", lib=_LIBRARY)


def _autograd(name: str, setup_context, backward) -> None:
    torch.library.register_autograd(f"{_NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


# ---------------------------------------------------------------------------------------------------------------- mp_nce


@_implement("mp_nce_fwd")
def _mp_nce_fwd(z, sample_ids, domain_ids, temperature, offset, weight, mask, ignore_domains, keep, *known_and_options):
    *known, reduction, normalize, backend = known_and_options
    chosen, tables = find(backend), mirrored(temperature, offset)
    num_domains = None if ignore_domains else temperature.shape[0]
    chosen.check_values(*tables, weight, mask, domain_ids, num_domains)
    loss, problem, *statistics = _engine.mp_nce_forward(
        chosen,
        z,
        sample_ids,
        None if ignore_domains else domain_ids,
        *tables,
        weight,
        mask,
        Known(*known),
        reduction,
        normalize,
        keep,
    )
    return loss, tables, problem.rows, *statistics, *problem.layout


@_fake("mp_nce_fwd")
def _mp_nce_fwd_fake(
    z, sample_ids, domain_ids, temperature, offset, weight, mask, ignore_domains, keep, *known_and_options
):
    sizes, _, reduction, normalize, backend = known_and_options
    chosen = find(backend)
    m, d = z.shape
    k = temperature.shape[0]
    r = padded_rows(m, k, chosen.block, sizes)
    accumulator = accumulator_dtype(z.dtype)
    return (
        z.new_empty((m,) if reduction == "none" else (), dtype=accumulator),
        z.new_empty(2, k, k, dtype=accumulator),
        z.new_empty(r, chosen.padded_columns(d), dtype=chosen.compute_dtype(z.dtype, normalize)),
        *(z.new_empty(r, dtype=accumulator) for _ in ("inv_norm", "lse", "coefficient")),
        z.new_empty(_engine.kept_elements(chosen, r, accumulator, keep), dtype=accumulator),
        *empty_layout(m, k, r, chosen.block, z),
    )


@_implement("mp_nce_bwd")
def _mp_nce_bwd(grad, z, weight, mask, tables, rows, inv_norm, lse, coefficient, kept, *layout_and_options):
    *layout, need_embeddings, sizes, allowed, reduction, normalize, backend = layout_and_options
    problem = Problem(rows, Layout(*layout), *tables, weight, mask, Known(sizes, allowed))
    grad_z, grad_temperature, grad_offset = _engine.mp_nce_backward(
        find(backend), grad, z, problem, inv_norm, lse, coefficient, kept, reduction, normalize, need_embeddings
    )
    return z.new_empty(0) if grad_z is None else grad_z, grad_temperature, grad_offset


@_fake("mp_nce_bwd")
def _mp_nce_bwd_fake(grad, z, weight, mask, tables, *saved_and_options):
    need_embeddings = saved_and_options[-6]
    return z.new_empty(z.shape if need_embeddings else (0,)), *(torch.empty_like(t) for t in tables)


def _mp_nce_setup_context(ctx, inputs, output):
    z, _, _, _, _, weight, mask, _, _, *ctx.options = inputs
    ctx.save_for_backward(z, weight, mask, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _mp_nce_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 14
    need_embeddings = ctx.needs_input_grad[0]
    grad_z, grad_temperature, grad_offset = torch.ops.uniclip_kernels.mp_nce_bwd(
        grad, *ctx.saved_tensors, need_embeddings, *ctx.options
    )
    return grad_z if need_embeddings else None, None, None, grad_temperature, grad_offset, *(None,) * 9


# ----------------------------------------------------------------------------------------------------- domain_similarity


def _domains(ids: Tensor | None, rows: Tensor, ignore_domains: bool) -> Tensor:
    if ids is None or ignore_domains:
        return torch.zeros(rows.shape[0], dtype=torch.int32, device=rows.device)
    return ids.int()


@_implement("domain_similarity_fwd")
def _domain_similarity_fwd(x, y, x_ids, y_ids, temperature, offset, ignore_domains, normalize, backend):
    given = {n: ids for n, ids in (("x_domain_ids", x_ids), ("y_domain_ids", y_ids)) if ids is not None}
    check_values(temperature, offset, given, None if ignore_domains else temperature.shape[0])
    domains = _domains(x_ids, x, ignore_domains), _domains(y_ids, y, ignore_domains)
    return _engine.similarity_forward(find(backend), x, y, *domains, temperature, offset, normalize)


@_fake("domain_similarity_fwd")
def _domain_similarity_fwd_fake(x, y, x_ids, y_ids, temperature, offset, ignore_domains, normalize, backend):
    chosen = find(backend)
    accumulator = accumulator_dtype(x.dtype)
    columns, dtype = chosen.padded_columns(x.shape[1]), chosen.compute_dtype(x.dtype, normalize)
    rx, ry = (padded_rows(len(z), 1, chosen.block) for z in (x, y))
    return (
        x.new_empty(x.shape[0], y.shape[0], dtype=accumulator),
        x.new_empty(rx, columns, dtype=dtype),
        y.new_empty(ry, columns, dtype=dtype),
        x.new_empty(rx, dtype=accumulator),
        y.new_empty(ry, dtype=accumulator),
    )


@_implement("domain_similarity_bwd")
def _domain_similarity_bwd(
    grad, s, x, y, x_ids, y_ids, temperature, x_rows, y_rows, x_inv, y_inv, ignore_domains, normalize, backend
):
    domains = _domains(x_ids, x, ignore_domains), _domains(y_ids, y, ignore_domains)
    return _engine.similarity_backward(
        find(backend), grad, s, x, y, *domains, temperature, x_rows, y_rows, x_inv, y_inv, normalize
    )


@_fake("domain_similarity_bwd")
def _domain_similarity_bwd_fake(grad, s, x, y, x_ids, y_ids, temperature, *_):
    return x.new_empty(x.shape), y.new_empty(y.shape), torch.empty_like(temperature), torch.empty_like(temperature)


def _similarity_setup_context(ctx, inputs, output):
    x, y, x_ids, y_ids, temperature, _, *ctx.options = inputs
    ctx.save_for_backward(output[0], x, y, x_ids, y_ids, temperature, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _similarity_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 9
    grad_x, grad_y, grad_temperature, grad_offset = torch.ops.uniclip_kernels.domain_similarity_bwd(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return grad_x, grad_y, None, None, grad_temperature, grad_offset, None, None, None


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
