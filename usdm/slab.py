"""Blocks inside one slab of 2 MiB.

What is known of the blocks is kept in Python objects, never in the slab itself: a stray DMA write of a device can spoil
data, but not the allocator (S1 of the C library).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from usdm.limits import IOVA_SLAB_SIZE, UNIT
from usdm.regions import Region

UNITS = IOVA_SLAB_SIZE // UNIT
_ALL = (1 << UNITS) - 1


class Slab(Region):
    """A slab, cut into blocks of whole units (1 KiB), first-fit.

    The first unit is as usable as any other, and the slab's IOVA is a multiple of 2 MiB, so that an empty slab has
    room for every block up to 2 MiB at every alignment up to 2 MiB (A1 of the C library: sizes that always fail).
    """

    __slots__ = ("_free", "_hopeless", "_lengths", "_starts")
    owned = True

    def __init__(self, virt: int) -> None:
        super().__init__(virt, IOVA_SLAB_SIZE)
        self._free = _ALL  # bit n: unit n is free
        self._starts: list[int] = []  # first units of blocks, ascending
        self._lengths: dict[int, int] = {}
        self._hopeless = UNITS + 1  # a length known not to fit

    @property
    def empty(self) -> bool:
        """No block is taken."""
        return not self._starts

    @property
    def full(self) -> bool:
        """No unit is free."""
        return not self._free

    def take(self, length: int, step: int) -> int | None:
        """Take the lowest block of `length` units whose first unit is a multiple of `step` (a power of two).

        Returns:
            Its offset in bytes, or None when there is no room.
        """
        if length >= self._hopeless:
            return None
        # Bit n of `run` stays set when units n … n+done-1 are free; `done` doubles.
        run, done = self._free, 1
        while done < length:
            more = min(done, length - done)
            run &= run >> more
            done += more
        if not run:
            self._hopeless = length
            return None
        run &= _ALL // ((1 << step) - 1)  # every step-th bit
        if not run:
            return None
        start = (run & -run).bit_length() - 1
        self._free ^= ((1 << length) - 1) << start
        insort(self._starts, start)
        self._lengths[start] = length
        return start * UNIT

    def give_back(self, offset: int) -> None:
        """Free the block that starts at `offset` bytes."""
        start = offset // UNIT
        length = self._lengths.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        self._free |= ((1 << length) - 1) << start
        self._hopeless = UNITS + 1

    def block(self, offset: int) -> tuple[int, int] | None:
        """Return offset and size of the block that holds `offset`, or None when it is free."""
        unit = offset // UNIT
        index = bisect_right(self._starts, unit) - 1
        if index < 0:
            return None
        start = self._starts[index]
        length = self._lengths[start]
        return (start * UNIT, length * UNIT) if unit < start + length else None
