"""Shadows of memory that remember who touched what, and when.

A race: two threads touch the same bytes, at least one of them writes, and nothing orders the two.
"""

import numpy as np

from .errors import LaneError

_SEVERAL = -2  # lanes, or warps
_NEVER, _IN_FLIGHT = np.int32(-1), np.int32(2**31 - 1)  # before and after any time


def _cells(offset: np.ndarray, width: int, cell: int) -> np.ndarray:
    """(accesses, cells an access) indices of the shadow cells under `width` bytes at each offset."""
    first = (offset // cell)[:, None]
    return first if width <= cell else first + np.arange(width // cell)


class _LastAccess:
    """For each cell: when it was touched last, by which lane, and by which warp if it was several lanes."""

    def __init__(self, cells: int):
        self.time, self.lane, self.warp = (np.empty(cells, np.int32) for _ in range(3))

    def reset(self) -> None:
        for table in (self.time, self.lane, self.warp):
            table.fill(_NEVER)

    def replace(self, cells: np.ndarray, lanes: np.ndarray, now: int) -> None:
        self.time[cells], self.lane[cells], self.warp[cells] = now, lanes, lanes // 32

    def join(self, cells: np.ndarray, lanes: np.ndarray, now: int, interval_start: np.ndarray) -> None:
        """Adds accesses to those of the current barrier interval, rather than forgetting about them."""
        new_interval = self.time[cells] <= interval_start
        for table, who in ((self.lane, lanes), (self.warp, lanes // 32)):
            joined = np.where(new_interval | (table[cells] == who), who, _SEVERAL)
            table[cells] = joined
            table[cells[table[cells] != joined]] = _SEVERAL  # several within this very instruction
        self.time[cells] = now


class SharedRaces:
    """Orders accesses to shared memory, in cells of `cell` bytes (the width of the kernel's narrowest shared access).

    Time counts accesses. Two accesses are ordered if a barrier of their block came in between, or a `bar.warp.sync` of
    their common warp. Storing once more what is there is no write: Triton lets redundant threads store equal values.
    Reading what nobody has written is an error too.

    The destination of a cp.async is in flight, nobody's to touch, until a wait of the issuing thread covers the copy;
    to all others the copy is a write by that thread at the time of its wait.
    """

    def __init__(self, size: int, cell: int, block_of_lane: np.ndarray):
        self._cell, self._block_of_lane = cell, block_of_lane
        self._writes, self._reads = _LastAccess(size // cell), _LastAccess(size // cell)
        self._block_synced = np.empty(int(block_of_lane[-1]) + 1, np.int32)
        self._warp_synced = np.empty(block_of_lane.size // 32, np.int32)

    def reset(self) -> None:
        self._now = 0
        self._writes.reset()
        self._reads.reset()
        self._block_synced.fill(0)
        self._warp_synced.fill(0)

    def block_barrier(self, lanes: np.ndarray) -> None:
        self._now += 1
        self._block_synced[self._block_of_lane[lanes]] = self._now

    def warp_barrier(self, lanes: np.ndarray) -> None:
        self._now += 1
        self._warp_synced[lanes // 32] = self._now

    def read(self, offset: np.ndarray, width: int, lanes: np.ndarray) -> None:
        """Lane `lanes[i]` reads `width` bytes at byte `offset[i]`."""
        cells, lanes = _cells(offset, width, self._cell), lanes[:, None]
        unwritten = self._writes.time[cells] == _NEVER
        if unwritten.any():
            raise LaneError("reads shared memory that nobody has written", lanes[unwritten.any(axis=1).argmax(), 0])
        self._require_order(self._writes, cells, lanes, "read-after-write")
        self._now += 1
        self._reads.join(cells, lanes, self._now, self._block_synced[self._block_of_lane[lanes]])

    def write(self, offset: np.ndarray, width: int, lanes: np.ndarray, changed: np.ndarray) -> None:
        """Only the accesses with `changed[i]` alter memory."""
        cells = _cells(offset, width, self._cell)
        changed = changed | (self._writes.time[cells] == _NEVER).any(axis=1)
        cells, lanes = cells[changed], lanes[changed][:, None]
        if lanes.size:
            self._require_order(self._writes, cells, lanes, "write-after-write")
            self._require_order(self._reads, cells, lanes, "write-after-read")
            self._now += 1
            self._writes.replace(cells, lanes, self._now)

    def begin_copy(self, offset: np.ndarray, width: int, lanes: np.ndarray) -> None:
        """A cp.async to these bytes has been issued."""
        self.write(offset, width, lanes, np.ones(lanes.size, bool))
        self._writes.time[_cells(offset, width, self._cell)] = _IN_FLIGHT

    def finish_copy(self, offset: np.ndarray, width: int, lanes: np.ndarray) -> None:
        """The issuing threads have waited for their copies."""
        self._now += 1
        self._writes.replace(_cells(offset, width, self._cell), lanes[:, None], self._now)

    def _require_order(self, earlier: _LastAccess, cells: np.ndarray, lanes: np.ndarray, what: str) -> None:
        time = earlier.time[cells]
        recent = time > self._block_synced[self._block_of_lane[lanes]]
        if not recent.any():
            return
        own = (earlier.lane[cells] == lanes) & (time != _IN_FLIGHT)
        warp_ordered = (earlier.warp[cells] == lanes // 32) & (time <= self._warp_synced[lanes // 32])
        race = recent & ~own & ~warp_ordered
        if race.any():
            access, column = np.unravel_index(np.argmax(race), race.shape)
            if time[access, column] == _IN_FLIGHT:
                raise LaneError("touches the destination of a cp.async that was not waited for", lanes[access, 0])
            other = self._thread_name(int(earlier.lane[cells[access, column]]))
            raise LaneError(f"data race in shared memory: {what}, the other access by {other}", lanes[access, 0])

    def _thread_name(self, lane: int) -> str:
        if lane == _SEVERAL:
            return "several threads"
        return f"thread {lane - int(np.argmax(self._block_of_lane == self._block_of_lane[lane]))}"


class BlockOwnership:
    """Which block wrote each cell of a global buffer: no other block may touch it in the same launch."""

    def __init__(self, name: str, size: int, cell: int):
        self._name, self._cells, self._cell = name, -(-size // cell), cell
        self._owner: np.ndarray | None = None  # made by the first store: most buffers are only read

    def read(self, offset: np.ndarray, width: int, lanes: np.ndarray, block_of_lane: np.ndarray) -> None:
        if self._owner is not None:
            self._require_own(_cells(offset, width, self._cell), lanes, block_of_lane, "reads")

    def write(self, offset: np.ndarray, width: int, lanes: np.ndarray, block_of_lane: np.ndarray) -> None:
        if self._owner is None:
            self._owner = np.zeros(self._cells, np.int32)  # block number + 1; pages of zeros cost nothing until used
        cells = _cells(offset, width, self._cell)
        self._require_own(cells, lanes, block_of_lane, "overwrites")
        self._owner[cells] = block_of_lane[lanes][:, None] + 1
        self._require_own(cells, lanes, block_of_lane, "overwrites")  # two blocks in this very instruction

    def _require_own(self, cells: np.ndarray, lanes: np.ndarray, block_of_lane: np.ndarray, verb: str) -> None:
        owner = self._owner[cells]
        foreign = (owner > 0) & (owner != block_of_lane[lanes][:, None] + 1)
        if foreign.any():
            access, column = np.unravel_index(np.argmax(foreign), foreign.shape)
            raise LaneError(
                f"data race between blocks: {verb} byte {int(cells[access, column]) * self._cell} of {self._name}, "
                f"which block {int(owner[access, column]) - 1} wrote",
                lanes[access],
            )
