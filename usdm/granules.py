"""IOVAs by granules of 4 KiB: small pieces share units of 2 MiB, which come out of an `IovaSpace`."""

from __future__ import annotations

from usdm import errors
from usdm.iova import IovaSpace
from usdm.limits import IOVA_SLAB_SIZE, PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SHIFT = IOVA_SLAB_SIZE.bit_length() - 1
_GRANULE = PAGE_SIZE.bit_length() - 1
_COUNT = IOVA_SLAB_SIZE // PAGE_SIZE
_FULL = (1 << _COUNT) - 1  # the free granules of a unit are bits of an integer, granule 0 the lowest
_FREE_UNITS = 64
_NOWHERE = -1, _COUNT


class Granules:
    """IOVAs that are handed out by granules, and the units of 2 MiB that they lie in.

    Pieces below 2 MiB share units, larger ones have units of their own. Next-fit as in `IovaSpace`: what was released
    is handed out again as late as possible, so that a device that uses it faults. So a new unit is taken rather than a
    released granule, unless more than 128 MiB of the units that are held, and more than half of them, are free. A unit
    without pieces goes back. Where a limit leaves no new unit, the units below it are used up, the lowest first.

    Attributes:
        taken: Bytes that are handed out.
    """

    def __init__(self, iovas: IovaSpace) -> None:
        self.taken = 0
        self._iovas = iovas
        self._units: dict[int, int] = {}  # unit -> free granules; the order is that in which they were taken
        self._large: dict[int, int] = {}  # IOVA -> size
        self._cursors: dict[int, tuple[int, int]] = {}  # limit -> unit and granule where the search goes on
        self._free = 0  # granules
        self._narrowed: set[int] = set()  # units that a change of the ranges has taken away

    @property
    def held(self) -> int:
        """Bytes of the units that are taken from the IOVA space."""
        return len(self._units) * IOVA_SLAB_SIZE + sum(_whole(size) for size in self._large.values())

    def allocate(self, size: int, last: int) -> int:
        """Take granules.

        Args:
            size: Bytes, a multiple of 4 KiB, at least one granule.
            last: The highest IOVA that may be used. A unit that goes beyond it is not taken for it.

        Returns:
            The first IOVA, a multiple of 4 KiB; of 2 MiB for 2 MiB and more.

        Raises:
            NoIovaSpace: No gap at or below `last` is large enough.
        """
        if size >= IOVA_SLAB_SIZE:
            iova = self._iovas.allocate_below(size, last)
            self._large[iova] = size
            self.taken += size
            return iova
        count = size >> _GRANULE
        unit, low = self._cursors.get(last, _NOWHERE)
        start = _fit(self._units[unit], count, low) if unit in self._units and unit not in self._narrowed else None
        # The unit may go beyond the limit, where it was taken for a higher one.
        if start is None or (unit << _SHIFT) + (start + count << _GRANULE) - 1 > last:
            unit, start = self._elsewhere(unit, low, count, last)
        self._cursors[last] = unit, start + count
        self._units[unit] &= ~(((1 << count) - 1) << start)
        self._free -= count
        self.taken += size
        return (unit << _SHIFT) + (start << _GRANULE)

    def release(self, iova: int, size: int) -> None:
        """Give granules back; they must have been taken so."""
        self.taken -= size
        if iova in self._large:
            del self._large[iova]
            self._give_back(iova, size)
            return
        unit, count = iova >> _SHIFT, size >> _GRANULE
        free = self._units[unit] | ((1 << count) - 1) << (iova >> _GRANULE) % _COUNT
        self._units[unit] = free
        self._free += count
        if free == _FULL:
            self._drop(unit)

    def release_all(self) -> None:
        """Give everything back."""
        for unit in list(self._units):
            self._drop(unit)
        for iova, size in self._large.items():
            self._give_back(iova, size)
        self._large.clear()
        self.taken = 0

    def holder(self, iova: int, size: int) -> tuple[int, int] | None:
        """Return IOVA and size of units held that a range meets, or None."""
        for start, length in self._spans():
            if iova < start + length and start < iova + size:
                return start, length
        return None

    def move(self, ranges: tuple[tuple[int, int], ...]) -> None:
        """Have other ranges of usable IOVAs, `(first, last)` with `last` inclusive. What is held stays held."""
        iovas = self._iovas = IovaSpace(ranges, self._iovas.cursor)
        self._narrowed.clear()
        for start, size in self._spans():
            for unit in range(start >> _SHIFT, (start + size) >> _SHIFT):
                if not iovas.reserve(unit << _SHIFT, IOVA_SLAB_SIZE):
                    self._narrowed.add(unit)

    def _spans(self) -> Iterator[tuple[int, int]]:
        for unit in self._units:
            yield unit << _SHIFT, IOVA_SLAB_SIZE
        for iova, size in self._large.items():
            yield iova, _whole(size)

    def _drop(self, unit: int) -> None:
        self._free -= self._units.pop(unit).bit_count()
        self._give_back(unit << _SHIFT, IOVA_SLAB_SIZE)

    def _give_back(self, iova: int, size: int) -> None:
        if not self._narrowed:
            self._iovas.release(iova, size)
            return
        for unit in range(iova >> _SHIFT, (iova + _whole(size)) >> _SHIFT):
            if unit in self._narrowed:
                self._narrowed.remove(unit)
            else:
                self._iovas.release(unit << _SHIFT, IOVA_SLAB_SIZE)

    def _elsewhere(self, behind: int, low: int, count: int, last: int) -> tuple[int, int]:
        """Return a unit and the first of `count` free granules in it, not in the rest of the unit `behind`.

        A new unit is begun at `low`, where the last one was left: where units go back at once, each granule of one has
        its turn before the first one comes again.
        """
        crowded = self._free > max(_FREE_UNITS, len(self._units) // 2) * _COUNT
        found = self._again(behind, count, last) if crowded else None
        if found is not None:
            return found
        try:
            unit = self._iovas.allocate_below(IOVA_SLAB_SIZE, last) >> _SHIFT
        except errors.NoIovaSpace:
            found = self._again(behind, count, last)
            if found is None:
                raise
            return found
        self._units[unit] = _FULL
        self._free += _COUNT
        return unit, low if low + count <= _COUNT else 0

    def _again(self, behind: int, count: int, last: int) -> tuple[int, int] | None:
        """Look through the units that are held and usable, from the one after `behind` on, in the order of IOVAs."""
        units = sorted(self._units.keys() - self._narrowed)
        later = [unit for unit in units if unit > behind]
        for unit in later + units[: len(units) - len(later)]:
            start = _fit(self._units[unit], count, 0)
            if start is not None and (unit << _SHIFT) + (start + count << _GRANULE) - 1 <= last:
                return unit, start
        return None


def _whole(size: int) -> int:
    return -(-size // IOVA_SLAB_SIZE) * IOVA_SLAB_SIZE


def _fit(free: int, count: int, low: int) -> int | None:
    """Return the lowest granule at or above `low` where `count` are free, one behind the other."""
    free >>= low
    have = 1
    # A bit stays when the next `have` granules are free as well.
    while have < count and free:
        step = min(have, count - have)
        free &= free >> step
        have += step
    return low + (free & -free).bit_length() - 1 if free else None
