"""cp.async: copies from global to shared memory that land in the wait that covers them."""

from dataclasses import dataclass

import numpy as np

from .memory import PrivateMemory


@dataclass(slots=True)
class _Copy:
    """What some lanes issued together: values to put at byte offsets of shared memory, and each lane's group."""

    lanes: np.ndarray
    offset: np.ndarray
    width: int
    words: np.ndarray
    group: np.ndarray

    def part(self, mask: np.ndarray) -> "_Copy":
        return _Copy(self.lanes[mask], self.offset[mask], self.width, self.words[mask], self.group[mask])


class CopyQueue:
    """Copies in flight. Each lane numbers its groups by how often it has committed."""

    def __init__(self, shared: PrivateMemory, lane_count: int):
        self._shared = shared
        self._committed = np.zeros(lane_count, np.int64)
        self._flying: list[_Copy] = []

    def reset(self) -> None:
        self._committed.fill(0)
        self._flying.clear()

    def issue(self, address: np.ndarray, words: np.ndarray, lanes: np.ndarray) -> None:
        """`words`, (lanes, words of 4 bytes), are to land at shared addresses; until then NaN is there."""
        width = words.shape[1] * 4
        offset = self._shared.locate(address, width, lanes)
        if self._shared.races:
            self._shared.races.begin_copy(offset, width, lanes)
        copy = _Copy(lanes, offset, width, words, self._committed[lanes])
        self._write(copy, np.uint32(0xFFFFFFFF))
        self._flying.append(copy)

    def commit(self, lanes: np.ndarray) -> None:
        self._committed[lanes] += 1

    def wait(self, lanes: np.ndarray, still_flying: int) -> None:
        """Lands all groups of the lanes but the latest few."""
        limit = np.full(self._committed.size, -1)
        limit[lanes] = self._committed[lanes] - still_flying
        flying = []
        for copy in self._flying:
            lands = copy.group < limit[copy.lanes]
            if lands.any():
                landed = copy.part(lands)
                if self._shared.races:
                    self._shared.races.finish_copy(landed.offset, landed.width, landed.lanes)
                self._write(landed, landed.words)
            if not lands.all():
                flying.append(copy.part(~lands))
        self._flying = flying

    def _write(self, copy: _Copy, words) -> None:
        index = (copy.offset // 4)[:, None] + np.arange(copy.width // 4)
        self._shared.content.view(np.uint32)[index] = words
