"""Fused multi-positive contrastive loss for PyTorch: MP-NCE and the domain-dependent similarity of UniCLIP."""

from . import _flops as _flops  # tells PyTorch's counter
from . import _ops as _ops  # registers the operators
from . import reference
from ._backend import backends
from ._version import __version__ as __version__
from .functional import domain_similarity, mp_nce, stack_views
from .modules import MPNCELoss

__all__ = ["MPNCELoss", "backends", "domain_similarity", "mp_nce", "reference", "stack_views"]
