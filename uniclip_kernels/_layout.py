"""Rows sorted by (domain, sample), each domain starting on a tile boundary, and the walk over unordered pairs of panels.

After this every pair of tiles has one pair of domains, and only tiles whose ranges of sample numbers meet can hold positives.
All of it is computed on the device of the rows; shapes depend on what the host knows without waiting for the device: M, K, and
how many rows each domain has where the caller could tell.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ._rows import Rows

FEW_DOMAINS = 16  # so many always get tiles of their own
ROOM = "uniclip_kernels: domain_ids hold other domains than when stack_views made them"


class Layout(NamedTuple):
    """R = ``padded_rows(M, K, block, sizes)`` slots in tiles of ``block`` rows; an input row with a negative id has no slot."""

    order: Tensor  # (R,) int64: input row of each slot, -1 for an empty slot
    slot: Tensor  # (M,) int64: slot of each input row, -1 for padding rows
    ids: Tensor  # (R,) int32: dense sample number of each slot, ascending within a domain, -1 for an empty slot
    tiles: Tensor  # (R / block, 4) int32: domain (-1: empty tile), filled slots, first and last sample number
    spans: Tensor  # (R / block, K, 2) int32: tiles [start, end) that may hold positives of a tile, by domain
    groups: Tensor  # (R,) int32: exclusion group of each slot, ascending within a domain, -1 where empty; or (0,)

    def group_tiles(self, block: int) -> Tensor:
        """As ``tiles``, with the first and last group."""
        domain, filled = self.tiles[:, 0], self.tiles[:, 1]
        first = torch.arange(0, len(self.ids), block, device=self.ids.device)
        return torch.stack([domain, filled, self.groups[first], self.groups[first + (filled - 1).clamp(min=0)]], -1)


def empty_layout(n: int, num_domains: int, slots: int, block: int, like: Tensor, grouped: bool) -> Layout:
    """Room for a layout of n rows on the device of ``like``."""
    return Layout(
        order=like.new_empty(slots, dtype=torch.int64),
        slot=like.new_empty(n, dtype=torch.int64),
        ids=like.new_empty(slots, dtype=torch.int32),
        tiles=like.new_empty(slots // block, 4, dtype=torch.int32),
        spans=like.new_empty(slots // block, num_domains, 2, dtype=torch.int32),
        groups=like.new_empty(slots if grouped else 0, dtype=torch.int32),
    )


class Rectangle(NamedTuple):
    """Slots [i0, i1) against [j0, j1), all i below all j, or equal ranges: then only its unordered pairs are meant."""

    i0: int
    i1: int
    j0: int
    j1: int

    @property
    def diagonal(self) -> bool:
        return self.i0 == self.j0


def domains_apart(m: int, num_domains: int, block: int) -> bool:
    """Whether each domain gets tiles of its own: not where padding them would more than double the work."""
    return num_domains <= max(FEW_DOMAINS, m // block // 2)


def padded_rows(m: int, num_domains: int, block: int, sizes: Sequence[int] | None = None) -> int:
    """Slots enough for that many rows in each domain, or for any split of m rows over the domains.

    m may be symbolic: one formula serves both answers of ``domains_apart``, which a graph for every m must not ask; and whether
    there is more than one tile, which decides on strides, is known.
    """
    if sizes is not None:  # and there is a slot for each padding row too: what numbers the slots counts on it
        return torch.sym_max(sum((size + block - 1) // block for size in sizes), (m + block - 1) // block) * block
    if num_domains <= FEW_DOMAINS:
        return (m // block + max(num_domains, 2)) * block
    return (m // block + torch.sym_min(num_domains, torch.sym_max(FEW_DOMAINS, m // block // 2))) * block


def roomy_rows(m: int, num_domains: int, block: int) -> int:
    """Slots enough for any split of m rows over the domains, whether these are apart or not."""
    return (
        m // block + (max(num_domains, 2) if num_domains <= FEW_DOMAINS else torch.sym_min(num_domains, m + 2))
    ) * block


def starts_of(
    rows: Rows, num_domains: int, sizes: Sequence[int] | None, edges: Sequence[int], block: int
) -> Tensor | None:
    """First slot of each domain, and the number of slots, int64; None where these follow from the rows alone.

    ``num_domains`` and the sizes are those of own rows; the domains of set s start behind the slots of set s - 1, which end at
    ``edges[s - 1]``.
    """
    device, num_sets = rows.z.device, len(edges)
    known = _starts(tuple(sizes), block, device) if sizes is not None and any(sizes[1:]) else None
    if num_sets == 1:
        return known
    domains = rows.domain_ids.masked_fill(rows.sample_ids < 0, num_sets * num_domains).sort().values
    filled = torch.searchsorted(domains, torch.arange(num_sets * num_domains + 1, device=device)).diff()
    whole = ((filled + block - 1) // block * block).view(num_sets, num_domains)
    before = whole.cumsum(1) - whole + whole.new_tensor([0, *edges[:-1]])[:, None]
    if known is not None:
        before[0] = known[:-1]
    return torch.cat([before.flatten(), before.new_full((1,), edges[-1])])


@functools.cache  # made once, since it is copied from the host; never dropped, since CUDA graphs may read it
def _starts(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it will be used in training too
        tiles = torch.tensor([0, *((size + block - 1) // block for size in sizes)])
        return (tiles.cumsum(0) * block).to(device)


def assert_room(starts: Tensor, filled: Tensor) -> None:
    """That the rows of each domain fit between its starts: ids may have been written to in ways that the host does not see.

    On a GPU it is asserted there.
    """
    torch._assert_async((filled <= starts.diff()).all(), ROOM)


def sort_rows(
    sample_ids: Tensor,
    domain_ids: Tensor | None,
    num_domains: int,
    domain_mask: Tensor | None,
    block: int,
    slots: int,
    starts: Tensor | None,
) -> Layout:
    """The layout of (N,) int64 ids in so many slots; ``domain_ids`` None puts every row into domain 0."""
    m, device = sample_ids.shape[0], sample_ids.device
    rows = slots
    every_domain = torch.arange(num_domains, device=device)

    # Dense sample numbers, then one key domain * M + number, behind all of which the padding rows sort.
    by_sample, row = torch.sort(sample_ids, stable=True)
    number = torch.zeros_like(by_sample)
    number[1:] = (by_sample[1:] != by_sample[:-1]).cumsum(0)
    key = number if domain_ids is None else number + domain_ids[row] * m
    key, position = torch.where(by_sample < 0, num_domains * m, key).sort(stable=True)
    row = row[position]

    # Where each domain starts among the sorted rows and, rounded up to tiles, among the slots.
    bounds = torch.searchsorted(key, torch.arange(num_domains + 1, device=device) * m)
    filled = bounds.diff()
    start = starts
    if start is None:
        start = torch.cat([bounds.new_zeros(1), ((filled + block - 1) // block * block).cumsum(0)])
    else:
        assert_room(start, filled)
    domain = torch.div(key, max(m, 1), rounding_mode="floor")
    present = domain < num_domains
    domain = domain.clamp(max=num_domains - 1)
    gap = (start[:-1] - bounds[:-1])[domain]  # slot of a sorted row minus its place in the sorted order
    place = torch.arange(m, device=device)
    target = torch.where(present, place + gap, rows)  # `rows` is a slot that is cut off below

    def spread(values: Tensor, empty: int) -> Tensor:
        out = torch.full((rows + 1, *values.shape[1:]), empty, dtype=values.dtype, device=device)
        return out.index_copy_(0, target, values)[:rows]

    order = spread(row, -1)
    slot = torch.empty_like(row).index_copy_(0, row, torch.where(present, target, -1))
    number = (key - domain * m).int()
    ids = spread(number, -1)

    first_slot = torch.arange(0, rows, block, device=device)
    tile_domain = (torch.searchsorted(start, first_slot, right=True) - 1).clamp(max=num_domains - 1)
    tile_filled = (filled[tile_domain] + start[tile_domain] - first_slot).clamp(0, block)
    tile_domain = torch.where(tile_filled > 0, tile_domain, -1)
    first, last = ids[first_slot], ids[first_slot + (tile_filled - 1).clamp(min=0)]
    tiles = torch.stack([tile_domain.int(), tile_filled.int(), first, last], -1)

    # Slots of the samples of a tile, domain by domain.
    begin = torch.searchsorted(key, first.long()[:, None] + every_domain * m)
    end = torch.searchsorted(key, last.long()[:, None] + every_domain * m, right=True)
    wanted = (tile_domain >= 0)[:, None] & (begin < end)
    if domain_mask is not None:
        wanted &= domain_mask[tile_domain.clamp(min=0)]
    gap = start[:-1] - bounds[:-1]
    spans = torch.stack([(begin + gap) // block, (end + gap + block - 1) // block], -1)
    spans = torch.where(wanted[..., None], spans, 0).int()
    return Layout(order, slot, ids, tiles, spans, ids.new_empty(0))
