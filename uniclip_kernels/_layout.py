"""Rows sorted by (domain, sample), each domain starting on a tile boundary, and the walk over unordered pairs of panels.

After this every tile has one domain pair, the positives of a row lie in at most K contiguous runs, and only tiles whose id
ranges meet can hold positives. All of it is computed on the device of the rows; sizes depend on M and K alone, never on
values, so nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """R = ``padded_rows(M, K, block)`` slots in tiles of ``block`` rows; an input row with a negative id has no slot."""

    order: Tensor  # (R,) int64: input row of each slot, -1 for an empty slot
    slot: Tensor  # (M,) int64: slot of each input row, -1 for padding rows
    ids: Tensor  # (R,) int32: dense sample number of each slot, ascending within a domain, -1 for an empty slot
    tiles: Tensor  # (R / block, 4) int32: domain (-1: empty tile), filled slots, first and last sample number
    runs: Tensor  # (R, K, 2) int32: slots [start, end) of the same sample in each domain that the mask leaves
    count: Tensor  # (R,) int32: |P_i|, the number of positives


class Rectangle(NamedTuple):
    """Slots [i0, i1) against [j0, j1), all i below all j, or equal ranges: then only its unordered pairs are meant."""

    i0: int
    i1: int
    j0: int
    j1: int

    @property
    def diagonal(self) -> bool:
        return self.i0 == self.j0


def padded_rows(m: int, num_domains: int, block: int) -> int:
    """Slots enough for any split of m rows over the domains."""
    return (m // block + num_domains) * block


def sort_rows(
    sample_ids: Tensor, domain_ids: Tensor | None, num_domains: int, domain_mask: Tensor | None, block: int
) -> Layout:
    """The layout of (M,) ids; ``domain_ids`` None puts every row into domain 0."""
    m, device = sample_ids.shape[0], sample_ids.device
    rows = padded_rows(m, num_domains, block)
    every_domain = torch.arange(num_domains, device=device)

    # Dense sample numbers, then one key domain * M + number, behind all of which the padding rows sort.
    by_sample, row = torch.sort(sample_ids.long(), stable=True)
    number = torch.zeros_like(by_sample)
    number[1:] = (by_sample[1:] != by_sample[:-1]).cumsum(0)
    key = number if domain_ids is None else number + domain_ids.long()[row] * m
    key, position = torch.where(by_sample < 0, num_domains * m, key).sort(stable=True)
    row = row[position]

    # Where each domain starts among the sorted rows and, rounded up to tiles, among the slots.
    bounds = torch.searchsorted(key, torch.arange(num_domains + 1, device=device) * m)
    filled = bounds.diff()
    start = torch.cat([bounds.new_zeros(1), ((filled + block - 1) // block * block).cumsum(0)])
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

    # Runs of equal keys: the positives of a row, domain by domain.
    wanted = number.long()[:, None] + every_domain * m
    edges = torch.stack([torch.searchsorted(key, wanted), torch.searchsorted(key, wanted, right=True)], -1)
    edges += (start[:-1] - bounds[:-1])[:, None]
    if domain_mask is not None:
        edges[..., 1] = torch.where(domain_mask[domain], edges[..., 1], edges[..., 0])
    length = edges[..., 1] - edges[..., 0]
    has_itself = length.gather(1, domain[:, None])[:, 0] > 0
    runs = spread(edges.int(), 0)
    count = spread((length.sum(1) - has_itself.long()).int(), 0)

    first_slot = torch.arange(0, rows, block, device=device)
    tile_domain = (torch.searchsorted(start, first_slot, right=True) - 1).clamp(max=num_domains - 1)
    tile_filled = (filled[tile_domain] + start[tile_domain] - first_slot).clamp(0, block)
    tile_domain = torch.where(tile_filled > 0, tile_domain, -1)
    last = ids[first_slot + (tile_filled - 1).clamp(min=0)]
    tiles = torch.stack([tile_domain.int(), tile_filled.int(), ids[first_slot], last], -1)
    return Layout(order, slot, ids, tiles, runs, count)


def rectangles(
    tiles: Tensor, block: int, panel: int, domain_mask: Tensor | None, known_on_host: bool
) -> Iterator[Rectangle]:
    """Every unordered pair of slots once, in rectangles of at most ``panel`` x ``panel`` slots.

    ``known_on_host`` reads the tiles, so that panels end with their domain and masked domain pairs are left out whole. Without
    it (a GPU) panels are uniform, and the kernels skip empty and masked tiles.
    """
    panels = (
        _panels_of_domains(tiles, block, panel)
        if known_on_host
        else [(lo, min(lo + panel, len(tiles) * block), None) for lo in range(0, len(tiles) * block, panel)]
    )
    allowed = domain_mask.tolist() if known_on_host and domain_mask is not None else None
    for q, (j0, j1, b) in enumerate(panels):
        for i0, i1, a in panels[: q + 1]:
            if allowed is None or allowed[a][b]:
                yield Rectangle(i0, i1, j0, j1)


def _panels_of_domains(tiles: Tensor, block: int, panel: int) -> list[tuple[int, int, int]]:
    """(first slot, end of the filled slots, domain) of panels that each lie in one domain."""
    panels: list[tuple[int, int, int]] = []
    for t, (domain, filled, _, _) in enumerate(tiles.tolist()):
        lo, hi = t * block, t * block + filled
        if domain < 0:
            continue
        if panels and panels[-1][2] == domain and hi - panels[-1][0] <= panel:
            panels[-1] = (panels[-1][0], hi, domain)
        else:
            panels.append((lo, hi, domain))
    return panels
