"""Progress bars where there is a terminal to show them, and tqdm to draw them."""

from __future__ import annotations

from collections.abc import Iterable


class _NoBar:
    def __init__(self, items: Iterable = (), **options) -> None:
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        pass

    def update(self) -> None:
        pass


def bar(items: Iterable | None = None, **options):
    """As ``tqdm`` is called."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar(items or ())
    return tqdm(items, disable=None, **options)
