"""What ``torch.utils.flop_counter`` counts for each operator: of its matrix products, two for a multiply-add."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _ops as _ops  # defines them
from ._problem import Inputs, Options, SimilarityOptions

_OPERATORS = torch.ops.uniclip_kernels


def _pairs(inputs: Inputs) -> tuple[int, int]:
    """Products of rows with each other, where each unordered pair counts once, and with candidates; with two flops for each."""
    m, d = inputs.embeddings
    q = 0 if inputs.candidates is None else inputs.candidates[0]
    return m * m * d, 2 * m * q * d


@register_flop_formula(_OPERATORS.contrastive_fwd)
def _contrastive_fwd(*inputs_and_options, **__) -> int:
    return sum(_pairs(Inputs(*inputs_and_options[: len(Inputs._fields)])))


@register_flop_formula(_OPERATORS.contrastive_bwd)
def _contrastive_bwd(grad, *arguments, **__) -> int:
    """The similarities again, and their gradient times the rows, from each side that is wanted."""
    own, mixed = _pairs(Inputs(*arguments[: len(Inputs._fields)]))
    need_embeddings, need_candidates = arguments[-len(Options._fields) - 2 :][:2]
    return own + mixed + need_embeddings * (2 * own + mixed) + need_candidates * mixed


@register_flop_formula(_OPERATORS.domain_similarity_fwd)
def _domain_similarity_fwd(x, y, *_, **__) -> int:
    return 2 * x[0] * y[0] * x[1]


@register_flop_formula(_OPERATORS.domain_similarity_bwd)
def _domain_similarity_bwd(grad, s, x, y, *saved_and_options, **__) -> int:
    need_x, need_y = saved_and_options[-len(SimilarityOptions._fields) - 2 :][:2]
    return 2 * x[0] * y[0] * x[1] * (need_x + need_y)
