"""What both GPU backends do alike: a step of a small batch is the launches it takes, so values are checked in one, and rows
sorted in two beside the sorts themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ._backend import Backend, Strip
from ._checks import values_are_checked, values_wanted
from ._layout import Layout, Rectangle, assert_room, empty_layout, padded_rows, starts_of
from ._problem import Problem

CHECKED = 256  # table entries and domain ids to one entry of ``valid``


class GPUBackend(Backend):
    block = 128  # side of a tile of similarities
    column_multiple = 64
    known_on_host = False

    def __init__(self, device_type: str, workspace_bytes: int) -> None:
        self.device_type = device_type
        self.workspace_bytes = workspace_bytes

    def check_values(
        self,
        temperature: Tensor,
        offset: Tensor,
        weight: Tensor,
        domain_mask: Tensor | None,
        sample_ids: Tensor,
        domain_ids: Tensor | None,
        num_domains: int | None,
    ) -> None:
        if not values_are_checked():
            return
        entries = max(temperature.numel(), 0 if domain_ids is None else len(domain_ids))
        valid = torch.empty(-(-entries // CHECKED), dtype=torch.bool, device=temperature.device)
        limit = torch.iinfo(torch.int64).max if num_domains is None else num_domains
        tables = temperature.contiguous(), offset.contiguous(), weight.contiguous(), contiguous(domain_mask)
        self.find_valid(*tables, sample_ids.long(), _long(domain_ids), limit, valid)
        torch._assert_async(valid.all(), values_wanted(domain_mask is not None, domain_ids is not None, num_domains))

    def sort_rows(
        self,
        sample_ids: Tensor,
        domain_ids: Tensor | None,
        num_domains: int,
        domain_mask: Tensor | None,
        sizes: Sequence[int] | None,
    ) -> Layout:
        m, device = len(sample_ids), sample_ids.device
        by_sample, row = torch.sort(sample_ids.long(), stable=True)
        domain = torch.empty(m, dtype=torch.int16, device=device)
        first, end = (torch.empty(m, dtype=torch.int32, device=device) for _ in range(2))
        self.number_samples(by_sample, row, _long(domain_ids), num_domains, domain, first, end)
        domain, position = torch.sort(domain, stable=True)
        if (starts := starts_of(sizes, self.block, device)) is not None:
            assert_room(starts, domain)
        slots = padded_rows(m, num_domains, self.block, sizes)
        layout = empty_layout(m, num_domains, slots, self.block, sample_ids)
        self.lay_out(domain, position, row, first, end, starts, contiguous(domain_mask), layout)
        return layout

    @abstractmethod
    def find_valid(
        self,
        temperature: Tensor,
        offset: Tensor,
        weight: Tensor,
        domain_mask: Tensor | None,
        sample_ids: Tensor,
        domain_ids: Tensor | None,
        limit: int,
        valid: Tensor,
    ) -> None:
        """``valid``: whether CHECKED entries of the tables are as they must be, and of the domain ids, which are int64 and below
        ``limit`` where the sample id, int64 too, is not negative."""

    @abstractmethod
    def number_samples(
        self,
        by_sample: Tensor,
        row: Tensor,
        domain_ids: Tensor | None,
        num_domains: int,
        domain: Tensor,
        first: Tensor,
        end: Tensor,
    ) -> None:
        """Of (M,) ids in ascending order and their rows: the domain, K for padding, and where the sample begins and ends."""

    @abstractmethod
    def lay_out(
        self,
        domain: Tensor,
        position: Tensor,
        row: Tensor,
        first: Tensor,
        end: Tensor,
        starts: Tensor | None,
        domain_mask: Tensor | None,
        layout: Layout,
    ) -> None:
        """Fill the layout: ``domain`` (M,) ascends, ``position`` is the place of each in the order of samples, in which
        ``row``, ``first`` and ``end`` are; ``starts`` are the first slots of domains if the host knows them."""

    def similarity_grad(
        self,
        problem: Problem,
        strip: Strip,
        lse: Tensor,
        coefficient: Tensor,
        share: Tensor,
        sums: Tensor,
        work: Tensor,
    ) -> tuple[Tensor, Tensor]:
        i0, i1, j0, j1 = strip.rectangle
        h = work.view(-1)[: (i1 - i0) * (j1 - j0)].view(i1 - i0, j1 - j0)
        self.negatives_grad(problem, strip.rectangle, lse, coefficient, h, sums[0])
        self.positives_grad(problem, strip.rectangle, lse, share, h, sums[1])
        return h, h.T

    def negatives_grad(
        self, problem: Problem, rectangle: Rectangle, lse: Tensor, coefficient: Tensor, h: Tensor, sums: Tensor
    ) -> None:
        """All of ``h``: H / τ where negatives are, 0 elsewhere. Adds Σ H and Σ H s to ``sums`` (K, K, 2)."""

    def positives_grad(
        self, problem: Problem, rectangle: Rectangle, lse: Tensor, share: Tensor, h: Tensor, sums: Tensor
    ) -> None:
        """Those elements of ``h`` where positives are, and their part of ``sums``, likewise."""

    def accumulate(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        a = a[: len(out), : len(b)]
        out, b = out[: len(a)], b[: a.shape[1]]
        if a.dtype == out.dtype:
            out.addmm_(a, b)
        elif out.is_cuda:
            torch.ops.aten.addmm.dtype_out(out, a, b, out.dtype, out=out)
        else:  # emulated
            out.addmm_(a.to(out.dtype), b.to(out.dtype))


def contiguous(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


def _long(ids: Tensor | None) -> Tensor | None:
    return None if ids is None else ids.long()
