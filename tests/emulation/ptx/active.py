"""The lanes that execute an instruction."""

import numpy as np


class Active:
    """A subset of the machine's lanes.

    `mask` has a bool for each lane. `where` is what writes to registers use: True, which spares numpy a masked loop,
    if every living lane takes part; the registers of dead lanes may be overwritten, since nobody reads them.
    """

    __slots__ = ("_lanes", "complete", "count", "mask", "where")

    def __init__(self, mask: np.ndarray, where: bool | np.ndarray):
        self.mask, self.where = mask, where
        self.count = np.count_nonzero(mask)
        self.complete = self.count == mask.size
        self._lanes = None

    @property
    def lanes(self) -> np.ndarray:
        """Indices of the lanes."""
        if self._lanes is None:
            self._lanes = np.flatnonzero(self.mask)
        return self._lanes

    def take(self, register: np.ndarray) -> np.ndarray:
        """The values that the lanes hold."""
        return register if self.complete else register[self.lanes]

    def put(self, register: np.ndarray, values: np.ndarray) -> None:
        """Sets what the lanes hold, in the order of `lanes`."""
        if self.complete:
            register[...] = values
        else:
            register[self.lanes] = values

    def where_true(self, predicate: np.ndarray) -> "Active | None":
        """Those of the lanes whose predicate holds; None if there are none."""
        mask = self.mask & predicate
        count = np.count_nonzero(mask)
        if count == self.count:
            return self
        return Active(mask, mask) if count else None


def warp_bits(mask: np.ndarray) -> np.ndarray:
    """A mask of lanes as one integer for each warp, with a bit for each of its lanes."""
    return np.packbits(mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32).reshape(-1)
