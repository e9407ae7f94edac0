"""The IOVA space: which addresses are free, in units of 2 MiB."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from usdm import errors
from usdm.limits import DEFAULT_IOVA_RANGES, IOVA_SLAB_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def slabs(size: int) -> int:
    """Return how many units of 2 MiB hold `size` bytes."""
    return -(-size // IOVA_SLAB_SIZE)


class IovaSpace:
    """Free IOVAs of one IOMMU, handed out next-fit in units of 2 MiB.

    Next-fit gives an address again as late as it can, so that a device that uses an unmapped one faults instead of
    hitting the next owner's memory.

    Unit 0 is never handed out: IOVA 0 means failure in the C interface. Only units that lie in the kernel's ranges
    completely are handed out, so neither the MSI window (D11 of the C library) nor anything beyond the IOMMU's width
    (D12) can be.

    Free intervals are kept by start and by length, so that a search looks at the different lengths (few hundred at
    most) and not at every gap.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = DEFAULT_IOVA_RANGES, cursor: int = 0) -> None:
        """Start with everything free.

        Args:
            ranges: Usable IOVAs, `(first, last)` with `last` inclusive.
            cursor: IOVA where the search starts.
        """
        self._starts: list[int] = []
        self._lengths: dict[int, int] = {}  # start -> length, in units
        self._bins: dict[int, list[int]] = {}  # length -> starts, ascending
        self._cursor = cursor // IOVA_SLAB_SIZE
        end = 1
        for first, last in sorted(ranges):
            start = max(slabs(first), end)
            end = max(end, (last + 1) // IOVA_SLAB_SIZE)
            if start < end:
                self._insert(start, end - start)

    @property
    def cursor(self) -> int:
        """The IOVA where the next search starts."""
        return self._cursor * IOVA_SLAB_SIZE

    def allocate(self, size: int, alignment: int = IOVA_SLAB_SIZE) -> int:
        """Take whole units for `size` bytes.

        Args:
            size: Bytes, at least 1; rounded up to 2 MiB.
            alignment: Power of two; rounded up to 2 MiB.

        Returns:
            The first IOVA, a multiple of `alignment` and of 2 MiB.

        Raises:
            NoIovaSpace: No gap is large enough.
        """
        length, step = slabs(size), slabs(alignment)
        found = self._search(length, step, self._cursor)
        if found is None:
            found = self._search(length, step, 0)
        if found is None:
            free = sum(self._lengths.values()) * IOVA_SLAB_SIZE
            largest = max(self._bins, default=0) * IOVA_SLAB_SIZE
            raise errors.NoIovaSpace("size", size, f"free {free:#x}, largest gap {largest:#x}")
        interval, start = found
        self._take(interval, start, length)
        self._cursor = start + length
        return start * IOVA_SLAB_SIZE

    def reserve(self, iova: int, size: int) -> bool:
        """Take the units of `size` bytes at `iova`; tell whether they were free (otherwise nothing is taken)."""
        start, length = iova // IOVA_SLAB_SIZE, slabs(size)
        index = bisect_right(self._starts, start) - 1
        if index < 0:
            return False
        interval = self._starts[index]
        if interval + self._lengths[interval] < start + length:
            return False
        self._take(interval, start, length)
        return True

    def release(self, iova: int, size: int) -> None:
        """Give the units of `size` bytes at `iova` back; they must have been taken so."""
        start, length = iova // IOVA_SLAB_SIZE, slabs(size)
        index = bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == start + length:
            length += self._remove(start + length)
        if index > 0:
            before = self._starts[index - 1]
            if before + self._lengths[before] == start:
                length += self._remove(before)
                start = before
        self._insert(start, length)

    def _search(self, length: int, step: int, low: int) -> tuple[int, int] | None:
        """Return the interval and the lowest start at or above `low` where `length` units fit."""
        best = self._at_cursor(length, step, low)
        if best is not None:
            return best
        for size, starts in self._bins.items():
            if size < length:
                continue
            for index in range(bisect_left(starts, low), len(starts)):
                start = -(-starts[index] // step) * step
                if start + length <= starts[index] + size:
                    if best is None or start < best[1]:
                        best = starts[index], start
                    break
        return best

    def _at_cursor(self, length: int, step: int, low: int) -> tuple[int, int] | None:
        """Look at the interval that `low` lies in."""
        index = bisect_right(self._starts, low) - 1
        if index < 0:
            return None
        interval = self._starts[index]
        start = -(-low // step) * step
        return (interval, start) if start + length <= interval + self._lengths[interval] else None

    def _take(self, interval: int, start: int, length: int) -> None:
        end = interval + self._remove(interval)
        if interval < start:
            self._insert(interval, start - interval)
        if start + length < end:
            self._insert(start + length, end - start - length)

    def _insert(self, start: int, length: int) -> None:
        insort(self._starts, start)
        self._lengths[start] = length
        insort(self._bins.setdefault(length, []), start)

    def _remove(self, start: int) -> int:
        length = self._lengths.pop(start)
        del self._starts[bisect_left(self._starts, start)]
        starts = self._bins[length]
        del starts[bisect_left(starts, start)]
        if not starts:
            del self._bins[length]
        return length
