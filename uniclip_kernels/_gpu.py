"""What both GPU backends do alike: a step of a small batch is the launches it takes, so values are checked in one, and rows
sorted in two beside the sorts themselves."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ._backend import Backend, Strip
from ._checks import shares_exclusion, values_are_checked, values_wanted
from ._layout import Layout, Rectangle, assert_room, empty_layout
from ._problem import Inputs, Options, Problem, Terms

CHECKED = 256  # table entries and domain ids to one entry of ``valid``


class GPUBackend(Backend):
    block = 128  # side of a tile of similarities
    column_multiple = 64
    known_on_host = False
    overhead = 2048**2  # some 40 us of launches

    def __init__(self, device_type: str, workspace_bytes: int) -> None:
        self.device_type = device_type
        self.workspace_bytes = workspace_bytes

    def check_values(self, inputs: Inputs, options: Options) -> None:
        if not values_are_checked():
            return
        limit = torch.iinfo(torch.int64).max if options.ignore_domains else len(inputs.temperature)
        valid = [self._valid(inputs, inputs.sample_ids, inputs.domain_ids, limit)]
        if inputs.candidate_domain_ids is not None:
            valid.append(self._valid(inputs, inputs.candidate_sample_ids, inputs.candidate_domain_ids, limit))
        if inputs.exclude_ids is not None or inputs.candidate_exclude_ids is not None:
            valid.append(shares_exclusion(inputs))
        torch._assert_async(torch.cat(valid).all(), values_wanted(inputs, options))

    def _valid(self, inputs: Inputs, sample_ids: Tensor, domain_ids: Tensor | None, limit: int) -> Tensor:
        """Whether tables and domain ids are, one answer for each ``CHECKED`` entries; the latter lie in [0, limit)."""
        entries = max(inputs.temperature.numel(), 0 if domain_ids is None else len(domain_ids))
        valid = torch.empty(-(-entries // CHECKED), dtype=torch.bool, device=inputs.temperature.device)
        given = inputs.temperature, inputs.offset, inputs.weight, inputs.domain_mask
        tables = (contiguous(table) for table in given)
        self.find_valid(*tables, sample_ids.long(), None if domain_ids is None else domain_ids.long(), limit, valid)
        return valid

    def sort_rows(
        self,
        sample_ids: Tensor,
        domain_ids: Tensor | None,
        num_domains: int,
        domain_mask: Tensor | None,
        slots: int,
        starts: Tensor | None,
    ) -> Layout:
        m, device = len(sample_ids), sample_ids.device
        by_sample, row = torch.sort(sample_ids, stable=True)
        domain = torch.empty(m, dtype=torch.int16, device=device)
        first, end = (torch.empty(m, dtype=torch.int32, device=device) for _ in range(2))
        self.number_samples(by_sample, row, domain_ids, num_domains, domain, first, end)
        domain, position = torch.sort(domain, stable=True)
        if starts is not None:
            edges = torch.arange(num_domains + 1, dtype=domain.dtype, device=device)
            assert_room(starts, torch.searchsorted(domain, edges).diff())
        layout = empty_layout(m, num_domains, slots, self.block, sample_ids, grouped=False)
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
        self, problem: Problem, strip: Strip, terms: Terms, sums: Tensor, work: Tensor, both_sides: bool
    ) -> tuple[Tensor, Tensor]:
        i0, i1, j0, j1 = strip.rectangle
        h = work.view(-1)[: (i1 - i0) * (j1 - j0)].view(i1 - i0, j1 - j0)
        self.negatives_grad(problem, strip.rectangle, terms, h, sums[0])
        self.positives_grad(problem, strip.rectangle, terms, h, sums[1])
        return h, h.T

    @abstractmethod
    def negatives_grad(self, problem: Problem, rectangle: Rectangle, terms: Terms, h: Tensor, sums: Tensor) -> None:
        """All of ``h``: H / τ where negatives are, 0 elsewhere. Adds Σ H and Σ H s to ``sums`` (K, K, 2)."""

    @abstractmethod
    def positives_grad(self, problem: Problem, rectangle: Rectangle, terms: Terms, h: Tensor, sums: Tensor) -> None:
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
