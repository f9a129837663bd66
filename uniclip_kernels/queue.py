"""A queue of rows of earlier steps, to compare with: MoCo's negatives, XBM's memory of labelled rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._checks import check_embeddings, check_ids, is_integer

_NO_SAMPLE = 1 << 62  # ids from here on are those of rows that belong to no sample


class RowQueue(nn.Module):
    """The last ``size`` rows that were pushed, first in, first out, with their ids; what :func:`mp_nce` takes as candidates.

    Rows are kept without their graph. They are buffers: saved and loaded with the module, and on each rank its own, but inside a
    module in DistributedDataParallel, which copies buffers from rank 0. As long as fewer rows were pushed, the rest are padding.
    Nothing waits for a device.

    Args:
        size: Q, how many rows are kept.
        dim: D, their length.
        dtype: how they are kept; bfloat16 unless told otherwise.

    ::

        queue = RowQueue(65536, 256)
        loss = mp_nce(queries, sample_ids, **queue.candidates(queries.dtype))
        queue.push(keys)
    """

    rows: Tensor
    sample_ids: Tensor
    domain_ids: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int, *, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        for name, value in {"size": size, "dim": dim}.items():
            if not is_integer(value):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype!r}")
        self.size, self.dim = int(size), int(dim)
        self.register_buffer("rows", torch.zeros(self.size, self.dim, dtype=dtype))
        self.register_buffer("sample_ids", torch.full((self.size,), -1))
        self.register_buffer("domain_ids", torch.zeros(self.size, dtype=torch.long))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, rows: Tensor, sample_ids: Tensor | None = None, domain_ids: Tensor | None = None) -> None:
        """Put rows in, in place of the oldest.

        Args:
            rows: (N, D) of any floating-point dtype, on the device of the queue; of more than ``size`` the last ones stay.
            sample_ids: (N,) integer, which must mean the same in every step: indices of the dataset or class labels, not those
                of ``stack_views``. None: the rows are negatives of everything.
            domain_ids: (N,) integer; None is domain 0.
        """
        check_embeddings("rows", rows)
        if rows.shape[1] != self.dim or rows.device != self.rows.device:
            raise ValueError(
                f"rows must have D of {self.dim} on {self.rows.device}, got {rows.shape[1]} on {rows.device}"
            )
        check_ids("rows", rows, optional=True, sample_ids=sample_ids, domain_ids=domain_ids)
        at = self.pushed + torch.arange(rows.shape[0], device=self.rows.device)
        new = rows, at + _NO_SAMPLE if sample_ids is None else sample_ids, domain_ids
        for buffer, values in zip((self.rows, self.sample_ids, self.domain_ids), new, strict=True):
            values = torch.zeros_like(at) if values is None else values
            buffer.index_copy_(0, at[-self.size :] % self.size, values[-self.size :].to(buffer.dtype))
        self.pushed += rows.shape[0]

    def candidates(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Copies for the arguments ``candidates``, ``candidate_sample_ids`` and ``candidate_domain_ids``.

        ``dtype``: that of the embeddings, if it is not how the rows are kept.
        """
        return {
            "candidates": self.rows.to(dtype or self.rows.dtype, copy=True),
            "candidate_sample_ids": self.sample_ids.clone(),
            "candidate_domain_ids": self.domain_ids.clone(),
        }

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.dim}, dtype={self.rows.dtype}"
