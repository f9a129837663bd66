"""The operators: schemas, fakes and autograd. Each runs the engine with the backend that it is told.

To ``torch.compile`` they are opaque: shapes follow from those of the inputs, the options and the backend alone, so that one
graph serves every number of rows. Schemas follow from the fields of the named tuples that travel.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _engine, _similarity
from ._backend import find
from ._checks import check_similarity_values
from ._engine import Saved
from ._layout import Layout
from ._library import LIBRARY, NAMESPACE
from ._problem import Inputs, Options, SimilarityInputs, SimilarityOptions, Statistics, accumulator_dtype

_TAGS = (torch.Tag.needs_fixed_stride_order,)
_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    str: "str",
    Sequence[int] | None: "SymInt[]?",
    Sequence[bool] | None: "bool[]?",
}


def _arguments(*parts: type | str) -> str:
    """The part of a schema that fields of named tuples make, beside arguments written out."""
    found = []
    for part in parts:
        if isinstance(part, str):
            found.append(part)
        else:
            hints = typing.get_type_hints(part)
            found += [f"{_TYPES[hints[name]]} {name}" for name in part._fields]
    return ", ".join(found)


def _named(prefix: str, fields: Iterable[str]) -> str:
    return ", ".join(f"Tensor {prefix}_{name}" for name in fields)


def _flat(saved: Saved) -> tuple[Tensor, ...]:
    return saved.tables, saved.dots, *saved.statistics, *saved.layout


def _saved(tensors: Sequence[Tensor]) -> Saved:
    tables, dots, *rest = tensors
    n = len(Statistics._fields)
    return Saved(tables, dots, Statistics(*rest[:n]), Layout(*rest[n:]))


_SAVED = f"Tensor tables, Tensor dots, {_named('row', Statistics._fields)}, {_named('layout', Layout._fields)}"
_N_INPUTS, _N_SAVED, _N_OPTIONS = len(Inputs._fields), _SAVED.count("Tensor "), len(Options._fields)

for _schema in (
    f"contrastive_fwd({_arguments(Inputs, 'bool keep', Options)}) -> (Tensor loss, Tensor counts, {_SAVED})",
    f"contrastive_bwd({_arguments('Tensor grad', Inputs, _SAVED, 'bool need_embeddings, bool need_candidates', Options)})"
    " -> (Tensor grad_embeddings, Tensor grad_candidates, Tensor grad_temperature, Tensor grad_offset)",
    f"domain_similarity_fwd({_arguments(SimilarityInputs, SimilarityOptions)}) -> Tensor",
    "domain_similarity_bwd("
    f"{_arguments('Tensor grad, Tensor s', SimilarityInputs, 'bool need_x, bool need_y', SimilarityOptions)})"
    " -> (Tensor grad_x, Tensor grad_y, Tensor grad_temperature, Tensor grad_offset)",
):
    LIBRARY.define(_schema, tags=_TAGS)


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


# ------------------------------------------------------------------------------------------------------------ objectives


@_implement("contrastive_fwd")
def _forward(*args: Any) -> tuple[Tensor, ...]:
    inputs, (keep, *options) = Inputs(*args[:_N_INPUTS]), args[_N_INPUTS:]
    options = Options(*options)
    done = _engine.forward(find(options.backend), inputs, options, keep)
    return done.loss, done.counts, *_flat(done.saved)


@_fake("contrastive_fwd")
def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, (keep, *options) = Inputs(*args[:_N_INPUTS]), args[_N_INPUTS:]
    options, z = Options(*options), inputs.embeddings
    saved = _engine.empty_saved(find(options.backend), inputs, options.domain_sizes, keep)
    m = z.shape[0]
    return z.new_empty(m, dtype=accumulator_dtype(z.dtype)), z.new_empty(m, dtype=torch.bool), *_flat(saved)


def _of_backward(args: Sequence[Any]) -> tuple[Tensor, Inputs, Saved, bool, bool, Options]:
    grad, *args = args
    saved = args[_N_INPUTS : _N_INPUTS + _N_SAVED]
    need_embeddings, need_candidates, *options = args[_N_INPUTS + _N_SAVED :]
    return grad, Inputs(*args[:_N_INPUTS]), _saved(saved), need_embeddings, need_candidates, Options(*options)


@_implement("contrastive_bwd")
def _backward(*args: Any) -> tuple[Tensor, ...]:
    grad, inputs, saved, *needs, options = _of_backward(args)
    grads = _engine.backward(find(options.backend), grad, inputs, options, saved, *needs)
    return *(_or_empty(g, inputs.embeddings) for g in grads[:2]), *grads[2:]


@_fake("contrastive_bwd")
def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    _, inputs, saved, need_embeddings, need_candidates, _ = _of_backward(args)
    z, candidates = inputs.embeddings, inputs.candidates
    return (
        torch.empty_like(z, memory_format=torch.contiguous_format) if need_embeddings else z.new_empty(0),
        z.new_empty(candidates.shape) if need_candidates else z.new_empty(0),
        *(torch.empty_like(t) for t in saved.tables),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:_N_INPUTS], *output[2:])
    ctx.options = inputs[_N_INPUTS + 1 :]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_) -> tuple[Tensor | None, ...]:
    grads = dict.fromkeys(Inputs._fields)
    if grad is not None:
        needs = dict(zip(Inputs._fields, ctx.needs_input_grad, strict=False))
        need = needs["embeddings"], needs["candidates"]
        names = "embeddings", "candidates", "temperature", "offset"
        found = torch.ops.uniclip_kernels.contrastive_bwd(grad, *ctx.saved_tensors, *need, *ctx.options)
        grads |= {name: g for name, g in zip(names, found, strict=True) if needs[name]}
    return *grads.values(), *(None,) * (1 + _N_OPTIONS)


# ----------------------------------------------------------------------------------------------------- domain_similarity


def _domains(ids: Tensor | None, rows: Tensor, temperature: Tensor, ignore_domains: bool) -> Tensor:
    """Of the rows, int32. Ids out of range may not have been looked for: whatever they are, no table is read out of bounds."""
    if ids is None or ignore_domains:
        return torch.zeros(rows.shape[0], dtype=torch.int32, device=rows.device)
    return ids.long().clamp(0, temperature.shape[0] - 1).int()


def _both_domains(inputs: SimilarityInputs, options: SimilarityOptions) -> tuple[Tensor, Tensor]:
    args = inputs.temperature, options.ignore_domains
    return _domains(inputs.x_domain_ids, inputs.x, *args), _domains(inputs.y_domain_ids, inputs.y, *args)


_N_PAIR = len(SimilarityInputs._fields)


@_implement("domain_similarity_fwd")
def _similarity_forward(*args: Any) -> Tensor:
    inputs, options = SimilarityInputs(*args[:_N_PAIR]), SimilarityOptions(*args[_N_PAIR:])
    check_similarity_values(inputs, options.ignore_domains)
    domains = _both_domains(inputs, options)
    return _similarity.forward(find(options.backend), inputs.x, inputs.y, *domains, *inputs[4:], options.normalize)


@_fake("domain_similarity_fwd")
def _similarity_forward_fake(x: Tensor, y: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0], dtype=accumulator_dtype(x.dtype))


@_implement("domain_similarity_bwd")
def _similarity_backward(grad: Tensor, s: Tensor, *args: Any) -> tuple[Tensor, ...]:
    inputs, (need_x, need_y, *options) = SimilarityInputs(*args[:_N_PAIR]), args[_N_PAIR:]
    options = SimilarityOptions(*options)
    rows, domains = (inputs.x, inputs.y), _both_domains(inputs, options)
    grad_x, grad_y, *grads = _similarity.backward(
        find(options.backend), grad, s, *rows, *domains, inputs.temperature, options.normalize, need_x, need_y
    )
    return _or_empty(grad_x, inputs.x), _or_empty(grad_y, inputs.y), *grads


@_fake("domain_similarity_bwd")
def _similarity_backward_fake(grad: Tensor, s: Tensor, *args: Any) -> tuple[Tensor, ...]:
    inputs, (need_x, need_y, *_) = SimilarityInputs(*args[:_N_PAIR]), args[_N_PAIR:]
    needed = (inputs.x, need_x), (inputs.y, need_y)
    grads = (z.new_empty(z.shape if need else (0,)) for z, need in needed)
    return *grads, torch.empty_like(inputs.temperature), torch.empty_like(inputs.temperature)


def _similarity_setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output, *inputs[:_N_PAIR])
    ctx.options = inputs[_N_PAIR:]


def _differentiate_similarity(ctx, grad) -> tuple[Tensor | None, ...]:
    need_x, need_y = ctx.needs_input_grad[:2]
    grad_x, grad_y, grad_temperature, grad_offset = torch.ops.uniclip_kernels.domain_similarity_bwd(
        grad, *ctx.saved_tensors, need_x, need_y, *ctx.options
    )
    grads = (g if need else None for g, need in ((grad_x, need_x), (grad_y, need_y)))
    return *grads, None, None, grad_temperature, grad_offset, *(None,) * len(ctx.options)


# ------------------------------------------------------------------------------------------------------------- autograd


def _no_second_derivative(name_at: int | None):
    """``name_at``: which argument of the operator, from behind, is the name of the function."""

    def setup_context(ctx, inputs, output) -> None:
        ctx.function = "domain_similarity" if name_at is None else inputs[-name_at]

    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.function} has no second derivative: call it with backend='reference' to differentiate its gradient"
        )

    return setup_context, backward


_autograd("contrastive_fwd", _setup_context, _differentiate)
_autograd("contrastive_bwd", *_no_second_derivative(_N_OPTIONS - Options._fields.index("objective")))
_autograd("domain_similarity_fwd", _similarity_setup_context, _differentiate_similarity)
_autograd("domain_similarity_bwd", *_no_second_derivative(None))
