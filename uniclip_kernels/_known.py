"""What the host knows of the values of a tensor on a device, so that it need not wait for that device to read them.

It is kept on the tensor itself, and forgotten once the tensor is written to. What ``torch.compile`` traces knows nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NAME = "_uniclip_known"


def keep(tensor: Tensor, values: tuple) -> None:
    """Say what the values of ``tensor`` come to; what that is, is between those who keep and ask."""
    if not torch.compiler.is_compiling() and not tensor.is_inference():
        setattr(tensor, _NAME, (values, tensor._version))


def kept(tensor: Tensor) -> tuple | None:
    """What was kept of ``tensor`` if it still holds, or None."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None
    values, version = getattr(tensor, _NAME, (None, None))
    return values if version == tensor._version else None
