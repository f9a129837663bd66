"""What ranks tell each other: whether they agree, their rows, a few numbers a row, and sums."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.14 renamed it


class Exchange:
    """Collectives of one call of an objective, in an order that is the same on all ranks."""

    def __init__(self, group: dist.ProcessGroup, communication: str) -> None:
        self.group, self.communication = group, communication
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    @contextlib.contextmanager
    def told(self, num_numbers: int) -> Iterator[None]:
        """An error within is told to the other ranks, which would wait in ``agree`` for so many facts and counts."""
        try:
            yield
        except Exception:
            self.gathered([1] + [0] * num_numbers)
            raise

    def agree(self, facts: Mapping[str, int], counts: Sequence[int]) -> list[list[int]]:
        """The counts of every rank, after a check that all have the same facts. Raises on every rank alike."""
        told = self.gathered([0, *facts.values(), *counts])
        if failed := [rank for rank, (error, *_) in enumerate(told) if error]:
            raise RuntimeError(f"rank {failed[0]} of the process group raised an error; see what it says there")
        for place, name in enumerate(facts, 1):
            values = [of_rank[place] for of_rank in told]
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise ValueError(
                    f"{name} must be the same on all ranks, got {values[0]} on rank 0 and {values[other]} on rank {other}"
                )
        return [of_rank[1 + len(facts) :] for of_rank in told]

    def gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        """Those of every rank, each of which has as many."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        every = mine.new_empty(self.size * len(numbers))
        _all_gather(every, mine, group=self.group)
        return every.view(self.size, -1).tolist()

    def total(self, tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Over all ranks, the same bits on each."""
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor, op, group=self.group)
        return tensor

    def visitors(self) -> list[list[int]]:
        """The ranks whose tensors ``visit`` brings at a time."""
        if self.communication == "gather":
            return [[rank for rank in range(self.size) if rank != self.rank]] if self.size > 1 else []
        return [[(self.rank - step) % self.size] for step in range(1, self.size)]

    def visit(self, mine: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> Iterator[list[Tensor]]:
        """The tensors of the other ranks, whose row counts are ``counts[rank]``: all at once, or rank by rank in a ring.

        They are on their way from the time of this call.
        """
        if self.size == 1:
            return iter(())
        mine = [_bytes(t) for t in mine], [t.dtype for t in mine]
        return (self._by_gather if self.communication == "gather" else self._by_ring)(*mine, counts)

    def _by_gather(self, mine: list[Tensor], dtypes: list[torch.dtype], counts) -> Iterator[list[Tensor]]:
        pending = []
        for place, tensor in enumerate(mine):
            most = max(of_rank[place] for of_rank in counts)
            padded = tensor.new_zeros(most, tensor.shape[1])
            padded[: len(tensor)] = tensor
            every = tensor.new_empty(self.size * most, tensor.shape[1])
            work = _all_gather(every, padded, group=self.group, async_op=True) if most else None
            pending.append((work, every.view(self.size, most, tensor.shape[1]), padded))

        def others(place: int) -> Tensor:
            work, every, _ = pending[place]
            pending[place] = None  # what came is not held beside its parts
            if work is not None:
                work.wait()
            return torch.cat([every[r, : counts[r][place]] for r in self.visitors()[0]])

        def arrived() -> Iterator[list[Tensor]]:
            yield [others(place).view(dtype) for place, dtype in enumerate(dtypes)]

        return arrived()

    def _by_ring(self, mine: list[Tensor], dtypes: list[torch.dtype], counts) -> Iterator[list[Tensor]]:
        ahead, behind = (dist.get_global_rank(self.group, (self.rank + step) % self.size) for step in (1, -1))

        def passed_on(held: list[Tensor], step: int) -> tuple[list[dist.Work], list[Tensor]]:
            of_rank = counts[self.visitors()[step - 1][0]]
            coming = [t.new_empty(n, t.shape[1]) for n, t in zip(of_rank, held, strict=True)]
            operations = [dist.P2POp(dist.isend, t, ahead, self.group) for t in held if len(t)]
            operations += [dist.P2POp(dist.irecv, t, behind, self.group) for t in coming if len(t)]
            return dist.batch_isend_irecv(operations) if operations else [], coming

        works, coming = passed_on(mine, 1)

        def arrived(works: list[dist.Work], coming: list[Tensor]) -> Iterator[list[Tensor]]:
            for step in range(1, self.size):
                for work in works:
                    work.wait()
                here = coming
                if step + 1 < self.size:
                    works, coming = passed_on(here, step + 1)
                yield [t.view(dtype) for t, dtype in zip(here, dtypes, strict=True)]

        return arrived(works, coming)


def _bytes(tensor: Tensor) -> Tensor:
    """(N, D) in whatever dtype as rows of bytes: not every library of collectives knows every dtype."""
    n, d = tensor.shape
    out = tensor.new_empty(n, d * tensor.element_size(), dtype=torch.uint8)
    out.view(tensor.dtype).copy_(tensor.detach())
    return out
