"""Fused multi-positive contrastive losses for PyTorch: MP-NCE, its relatives, and the domain-dependent similarity."""

from . import _flops as _flops  # tells PyTorch's counter
from . import _ops as _ops  # registers the operators
from . import reference
from ._backend import backends
from ._version import __version__ as __version__
from .caching import cached_backward
from .functional import domain_similarity, mil_nce, mp_nce, siglip, stack_views, sup_con
from .modules import MILNCELoss, MPNCELoss, SigLIPLoss, SupConLoss
from .queue import RowQueue

__all__ = [
    "MILNCELoss",
    "MPNCELoss",
    "RowQueue",
    "SigLIPLoss",
    "SupConLoss",
    "backends",
    "cached_backward",
    "domain_similarity",
    "mil_nce",
    "mp_nce",
    "reference",
    "siglip",
    "stack_views",
    "sup_con",
]
