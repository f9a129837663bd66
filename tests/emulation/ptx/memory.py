"""Global memory (the launch's buffers) and the private copies of shared and local memory; every access is checked.

Both kinds have the same methods. Addresses are int64 arrays with one entry for each of `lanes`, the lanes that take
part; vector accesses move `count` neighbouring values of `bits` bits each.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .errors import LaneError
from .races import BlockOwnership, SharedRaces
from .syntax import Kernel
from .types import UNSIGNED

_FIRST_ADDRESS = 1 << 40
_GUARD = 1 << 20  # unmapped bytes between buffers: a stray access hits them, not a neighbour
_ALIGNMENT = 256  # that of cudaMalloc


def require_alignment(address: np.ndarray, width: int, lanes: np.ndarray) -> None:
    if np.bitwise_or.reduce(address) & (width - 1):
        first = int(np.argmax(address & (width - 1) != 0))
        raise LaneError(f"misaligned access: {width} bytes at {int(address[first]):#x}", lanes[first])


def _view(content: np.ndarray, bits: int) -> np.ndarray:
    """Bytes as unsigned integers; an incomplete one at the end is left out."""
    width = bits // 8
    return content[: content.size // width * width].view(UNSIGNED[bits])


def _gather(content: np.ndarray, offset: np.ndarray, bits: int, count: int) -> list[np.ndarray]:
    view, index = _view(content, bits), offset // (bits // 8)
    return [view.take(index + element if element else index) for element in range(count)]


def _scatter(content: np.ndarray, offset: np.ndarray, bits: int, values: list[np.ndarray]) -> None:
    view, index = _view(content, bits), offset // (bits // 8)
    for element, value in enumerate(values):
        view[index + element if element else index] = value


@dataclass
class Buffer:
    """Bytes of host memory that the kernel sees at device address `base`."""

    name: str
    base: int
    content: np.ndarray
    ownership: BlockOwnership | None


class GlobalMemory:
    """The buffers of a launch, at invented addresses with unmapped bytes between them.

    `cell` is the width of the kernel's narrowest access if races between blocks are to be looked for, else None.
    """

    def __init__(self, cell: int | None = None):
        self.buffers: list[Buffer] = []
        self.block_of_lane: np.ndarray | None = None  # set for each chunk of the grid
        self._cell = cell
        self._bases: list[int] = []
        self._next = _FIRST_ADDRESS

    def map(self, name: str, content: np.ndarray) -> int:
        """Adds a buffer (a one-dimensional uint8 array, which stores will change) and returns its address."""
        base = self._next
        ownership = BlockOwnership(name, content.size, self._cell) if self._cell else None
        self.buffers.append(Buffer(name, base, content, ownership))
        self._bases.append(base)
        self._next = -(-(base + content.size + _GUARD) // _ALIGNMENT) * _ALIGNMENT
        return base

    def load(self, address: np.ndarray, bits: int, count: int, lanes: np.ndarray) -> list[np.ndarray]:
        found = None
        width = bits // 8 * count
        for buffer, part, offset in self._locate(address, width, lanes):
            if buffer.ownership:
                buffer.ownership.read(offset, width, lanes[part], self.block_of_lane)
            values = _gather(buffer.content, offset, bits, count)
            if isinstance(part, slice):
                return values
            found = found or [np.empty(address.size, UNSIGNED[bits]) for _ in values]
            for whole, value in zip(found, values, strict=True):
                whole[part] = value
        return found

    def store(self, address: np.ndarray, bits: int, values: list[np.ndarray], lanes: np.ndarray) -> None:
        width = bits // 8 * len(values)
        for buffer, part, offset in self._locate(address, width, lanes):
            if buffer.ownership:
                buffer.ownership.write(offset, width, lanes[part], self.block_of_lane)
            _scatter(buffer.content, offset, bits, [value[part] for value in values])

    def cell(self, address: np.ndarray, bits: int, lanes: np.ndarray) -> np.ndarray:
        """A view of the value at a single address, for atomic operations."""
        buffer, _, offset = next(self._locate(address, bits // 8, lanes))
        return buffer.content[int(offset[0]) :][: bits // 8].view(UNSIGNED[bits])

    def _locate(self, address: np.ndarray, width: int, lanes: np.ndarray) -> Iterator[tuple]:
        """Splits addresses by buffer: (buffer, which of the addresses, byte offsets in the buffer)."""
        require_alignment(address, width, lanes)
        owner = bisect_right(self._bases, int(address[0])) - 1
        if owner >= 0:
            buffer = self.buffers[owner]
            offset = address - buffer.base
            if int(offset.view(np.uint64).max()) + width <= buffer.content.size:
                yield buffer, slice(None), offset
                return
        owners = np.searchsorted(self._bases, address, side="right") - 1
        for owner in np.unique(owners):
            part = np.flatnonzero(owners == owner)
            if owner < 0:
                raise LaneError(
                    f"out of bounds: {width} bytes at {int(address[part[0]]):#x}, in no buffer",
                    lanes[part[0]],
                )
            buffer = self.buffers[owner]
            offset = address[part] - buffer.base
            beyond = offset + width > buffer.content.size
            if beyond.any():
                first = int(np.argmax(beyond))
                raise LaneError(
                    f"out of bounds: {width} bytes at byte {int(offset[first])} of {buffer.name}, "
                    f"which has {buffer.content.size}",
                    lanes[part[first]],
                )
            yield buffer, part, offset


def map_variables(memory: GlobalMemory, kernel: Kernel) -> dict[str, int]:
    """Maps the kernel's .global and .const variables, first of all, so that they always get the same addresses."""
    addresses = {}
    for variable in kernel.variables:
        if variable.space in ("global", "const"):
            content = np.zeros(variable.size, np.uint8)
            content[: len(variable.initial)] = np.frombuffer(variable.initial, np.uint8)
            addresses[variable.name] = memory.map(variable.name, content)
    return addresses


class PrivateMemory:
    """Shared memory (a copy for each block) or local memory (a copy for each lane), NaN to begin with.

    `copy_of_lane` says which copy each lane uses; `cell`, as above, is None where races are not to be looked for.
    """

    def __init__(self, name: str, size: int, copy_of_lane: np.ndarray, cell: int | None = None):
        self.name, self.size = name, size
        stride = -(-size // 16) * 16
        self.content = np.empty((int(copy_of_lane[-1]) + 1) * stride, np.uint8)
        self.races = SharedRaces(self.content.size, cell, copy_of_lane) if cell else None
        self._start_of_lane = copy_of_lane * stride

    def reset(self) -> None:
        self.content.fill(0xFF)
        if self.races:
            self.races.reset()

    def locate(self, address: np.ndarray, width: int, lanes: np.ndarray) -> np.ndarray:
        """Checked byte offsets into `content`."""
        require_alignment(address, width, lanes)
        if int(address.view(np.uint64).max()) + width > self.size:  # negative ones are huge here
            first = int(np.argmax((address < 0) | (address + width > self.size)))
            raise LaneError(
                f"out of bounds: {width} bytes at {self.name} address {int(address[first])}, "
                f"of which there are {self.size} bytes",
                lanes[first],
            )
        return address + self._start_of_lane[lanes]

    def load(self, address: np.ndarray, bits: int, count: int, lanes: np.ndarray) -> list[np.ndarray]:
        width = bits // 8 * count
        offset = self.locate(address, width, lanes)
        if self.races:
            self.races.read(offset, width, lanes)
        return _gather(self.content, offset, bits, count)

    def store(self, address: np.ndarray, bits: int, values: list[np.ndarray], lanes: np.ndarray) -> None:
        width = bits // 8 * len(values)
        offset = self.locate(address, width, lanes)
        if self.races:
            self.races.write(offset, width, lanes, _differs(_gather(self.content, offset, bits, len(values)), values))
        _scatter(self.content, offset, bits, values)
        if self.races and (lost := _differs(_gather(self.content, offset, bits, len(values)), values)).any():
            raise LaneError(
                "data race in shared memory: two threads store different values at once",
                lanes[np.argmax(lost)],
            )

    def cell(self, address: np.ndarray, bits: int, lanes: np.ndarray) -> np.ndarray:
        """A view of the value at a single address, for atomic operations."""
        offset = int(self.locate(address, bits // 8, lanes)[0])
        return self.content[offset:][: bits // 8].view(UNSIGNED[bits])


def _differs(left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    return np.logical_or.reduce([one != other for one, other in zip(left, right, strict=True)])
