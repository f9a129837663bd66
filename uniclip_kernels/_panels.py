"""Panels: the slots in parts of at most a workspace's side, whose unordered pairs are the rectangles that are computed.

They end where a domain does if masked pairs of domains can be left out for it, which takes that the host knows where that is.
Else kernels skip masked tiles by themselves; products are with all of a rectangle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ._layout import Rectangle


class Panel(NamedTuple):
    """Slots [start, end); the domain, in [0, K) for every set of rows, if it is known that all are of it or of ones like it."""

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
    edges: Sequence[int],
    block: int,
    side: int,
    allowed: Sequence[Sequence[bool]] | None,
    overhead: int | None,
) -> list[Panel]:
    """From the domain of each tile and its filled slots or, for each set of rows, from how many each domain has, if known.

    Panels that end with domains leave out masked pairs, and may be many: ``overhead`` is that of ``Backend``.
    """

    def cut(groups: Sequence[int] | None) -> list[Panel]:
        if tiles is not None:
            return panels_of_tiles(tiles, groups, edges, block, side)
        panels: list[Panel] = []
        for (start, end), of in zip(itertools.pairwise([0, *edges]), sizes, strict=True):
            if groups is None or of is None:
                panels += uniform_panels(start, end, block, side)
            else:
                panels += panels_of_sizes(of, groups, start, block, side)
        return panels

    if allowed is None or all(map(all, allowed)):
        return cut(None)
    apart = cut(groups_of(allowed))
    if overhead is None:
        return apart

    def work(panels: list[Panel]) -> int:
        return sum((i1 - i0) * (j1 - j0) + overhead for i0, i1, j0, j1 in rectangles(panels, allowed))

    return min(apart, cut(None), key=work)


def groups_of(allowed: Sequence[Sequence[bool]]) -> list[int]:
    """For each domain the first of those next to it that are compared with the same ones."""
    groups: list[int] = []
    for domain, row in enumerate(allowed):
        groups.append(groups[-1] if domain and row == allowed[domain - 1] else domain)
    return groups


def panels_of_sizes(sizes: Sequence[int], groups: Sequence[int], start: int, block: int, side: int) -> list[Panel]:
    """Panels that end with their group, from the rows of each domain of a set that starts at slot ``start``."""
    panels = []
    for group, domains in itertools.groupby(range(len(sizes)), key=groups.__getitem__):
        end = start + sum((sizes[domain] + block - 1) // block for domain in domains) * block
        panels += uniform_panels(start, end, block, side, group)
        start = end
    return panels


def panels_of_tiles(
    tiles: Sequence[tuple[int, int]], groups: Sequence[int] | None, edges: Sequence[int], block: int, side: int
) -> list[Panel]:
    """Panels without empty tiles, to their last filled slot, from the domain (-1: empty tile) and the filled slots of each tile.

    They end where a set of rows does and, if there are any, with their group.
    """
    panels: list[Panel] = []
    for t, (domain, filled) in enumerate(tiles):
        start, end = t * block, t * block + filled
        if domain < 0:
            continue
        group = None if groups is None else groups[domain % len(groups)]
        if panels and start not in edges:
            first, last, of = panels[-1]
            if of == group and -(-last // block) * block == start and end - first <= side:
                panels[-1] = Panel(first, end, of)
                continue
        panels.append(Panel(start, end, group))
    return panels
