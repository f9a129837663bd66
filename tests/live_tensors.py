"""The bytes of tensors that are alive at one time, as PyTorch's dispatcher sees them come: the same on every run."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """``peak``: most bytes at one time of storages that operators returned within, whoever holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._sizes = 0, {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        storages = [t.untyped_storage() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
        self._sizes |= {StorageWeakRef(storage): storage.nbytes() for storage in storages}
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result
