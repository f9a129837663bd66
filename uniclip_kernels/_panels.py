"""Panels: the slots in parts of at most a workspace's side, whose unordered pairs are the rectangles that are computed.

They end where a domain does if masked pairs of domains can be left out for it, which takes that the host knows where that is. The
kernels skip masked tiles by themselves; products are with all of a rectangle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ._layout import Rectangle


class Panel(NamedTuple):
    """Slots [start, end); the domain, in [0, K) for every set of rows, if it is known that all are of one."""

    start: int
    end: int
    domain: int | None


def rectangles(panels: Sequence[Panel], allowed: Sequence[Sequence[bool]] | None) -> Iterator[Rectangle]:
    """Every unordered pair of slots once, without the pairs of domains that are known to be masked."""
    for q, (j0, j1, b) in enumerate(panels):
        for i0, i1, a in panels[: q + 1]:
            if allowed is None or a is None or b is None or allowed[a][b]:
                yield Rectangle(i0, i1, j0, j1)


def uniform_panels(start: int, end: int, block: int, side: int, domain: int | None = None) -> list[Panel]:
    """Panels of about equal size, of at most ``side`` slots, in whole tiles."""
    tiles = (end - start) // block
    count = -(-tiles * block // side)
    edges = [start + tiles * p // count * block for p in range(count)] + [end] if count else []
    return [Panel(*edge, domain) for edge in itertools.pairwise(edges)]


def panels_of(
    tiles: Sequence[tuple[int, int]] | None,
    sizes: Sequence[Sequence[int] | None],
    num_domains: int,
    edges: Sequence[int],
    block: int,
    side: int,
    by_domain: bool,
) -> list[Panel]:
    """From the domain of each tile and its filled slots or, for each set of rows, from how many each domain has, if known."""
    if tiles is not None:
        return panels_of_tiles(tiles, num_domains, edges, block, side, by_domain)
    panels: list[Panel] = []
    for (start, end), of in zip(itertools.pairwise([0, *edges]), sizes, strict=True):
        known = by_domain and of is not None
        panels += panels_of_sizes(of, start, block, side) if known else uniform_panels(start, end, block, side)
    return panels


def panels_of_sizes(sizes: Sequence[int], start: int, block: int, side: int) -> list[Panel]:
    """Panels that end with their domain, from the rows of each domain of a set that starts at slot ``start``."""
    panels = []
    for domain, size in enumerate(sizes):
        end = start + (size + block - 1) // block * block
        panels += uniform_panels(start, end, block, side, domain)
        start = end
    return panels


def panels_of_tiles(
    tiles: Sequence[tuple[int, int]], num_domains: int, edges: Sequence[int], block: int, side: int, by_domain: bool
) -> list[Panel]:
    """Panels without empty tiles, to their last filled slot, from the domain (-1: empty tile) and the filled slots of each tile.

    They end where a set of rows does and, if ``by_domain``, with their domain.
    """
    panels: list[Panel] = []
    for t, (domain, filled) in enumerate(tiles):
        start, end = t * block, t * block + filled
        if domain < 0:
            continue
        domain %= num_domains
        if panels and start not in edges:
            first, last, of = panels[-1]
            goes_on = of == domain if by_domain else -(-last // block) * block == start
            if goes_on and end - first <= side:
                panels[-1] = Panel(first, end, of)
                continue
        panels.append(Panel(start, end, domain if by_domain else None))
    return panels
