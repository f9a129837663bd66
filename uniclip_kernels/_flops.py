"""What ``torch.utils.flop_counter`` counts for each operator: of its matrix products, two for a multiply-add."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _ops as _ops  # defines them

_OPERATORS = torch.ops.uniclip_kernels


@register_flop_formula(_OPERATORS.mp_nce_fwd)
def _mp_nce_fwd(embeddings, *_, **__) -> int:
    m, d = embeddings
    return m * m * d  # each unordered pair once


@register_flop_formula(_OPERATORS.mp_nce_bwd)
def _mp_nce_bwd(grad, embeddings, *saved_and_options, **__) -> int:
    """The similarities again, and their gradient times the rows, from both sides."""
    need_embeddings = saved_and_options[-6]
    m, d = embeddings
    return (3 if need_embeddings else 1) * m * m * d


@register_flop_formula(_OPERATORS.domain_similarity_fwd)
def _domain_similarity_fwd(x, y, *_, **__) -> int:
    return 2 * x[0] * y[0] * x[1]


@register_flop_formula(_OPERATORS.domain_similarity_bwd)
def _domain_similarity_bwd(grad, s, x, y, *saved_and_options, **__) -> int:
    need_x, need_y, *_ = saved_and_options[-4:]
    return 2 * x[0] * y[0] * x[1] * (need_x + need_y)
