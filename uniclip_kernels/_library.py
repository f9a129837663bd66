"""The handle of the operators that are defined in Python.

PyTorch has one set of operators in a process. Where the package is forgotten (``sys.modules``) and imported again, those of the
earlier import give way: what still holds its functions goes on with the new ones.
"""

from __future__ import annotations

import torch

NAMESPACE = "uniclip_kernels"
_NAME = "_library"  # where the next import finds it


def _opened() -> torch.library.Library:
    operators = getattr(torch.ops, NAMESPACE)
    if (earlier := vars(operators).get(_NAME)) is not None:
        earlier._destroy()
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    setattr(operators, _NAME, library)
    return library


LIBRARY = _opened()
