"""The IOVA space: which addresses are free, in units of 2 MiB."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from usdm import errors
from usdm.limits import DEFAULT_IOVA_RANGES, IOVA_SLAB_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SHIFT = IOVA_SLAB_SIZE.bit_length() - 1
_GROUP = 9  # starts whose higher bits are equal are one list
_PENDING = 4096


def slabs(size: int) -> int:
    """Return how many units of 2 MiB hold `size` bytes."""
    return -(-size // IOVA_SLAB_SIZE)


class Starts:
    """Starts of intervals, ascending. They are kept in short lists, so that none is moved through a long one."""

    __slots__ = ("_groups", "_lists")

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._lists: dict[int, list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, start: int) -> None:
        """Add a start that is not there yet."""
        group = start >> _GROUP
        if group not in self._lists:
            self._lists[group] = []
            insort(self._groups, group)
        insort(self._lists[group], start)

    def remove(self, start: int) -> None:
        """Remove a start."""
        group = start >> _GROUP
        starts = self._lists[group]
        del starts[bisect_left(starts, start)]
        if not starts:
            del self._lists[group]
            del self._groups[bisect_left(self._groups, group)]

    def in_group(self, group: int) -> list[int]:
        """Return the starts whose higher bits are `group`."""
        return self._lists.get(group, [])

    def at_or_after(self, low: int) -> int | None:
        """Return the lowest start that is at least `low`."""
        starts = self._lists.get(low >> _GROUP)
        if starts is not None and starts[-1] >= low:
            return starts[bisect_left(starts, low)]
        index = bisect_right(self._groups, low >> _GROUP)
        return self._lists[self._groups[index]][0] if index < len(self._groups) else None

    def at_or_before(self, high: int) -> int | None:
        """Return the highest start that is at most `high`."""
        starts = self._lists.get(high >> _GROUP)
        if starts is not None and starts[0] <= high:
            return starts[bisect_right(starts, high) - 1]
        index = bisect_left(self._groups, high >> _GROUP)
        return self._lists[self._groups[index - 1]][-1] if index > 0 else None


class IovaSpace:
    """Free IOVAs of one IOMMU, handed out next-fit in units of 2 MiB.

    Next-fit gives an address again as late as it can, so that a device that uses an unmapped one faults instead of
    hitting the next owner's memory.

    Unit 0 is never handed out: IOVA 0 means failure in the C interface. Only units that lie in the kernel's ranges
    completely are handed out, so neither the MSI window (D11 of the C library) nor anything beyond the IOMMU's width
    (D12) can be.

    The interval that the cursor is in, the hole, is kept by itself: most allocations only move the cursor. What is
    released waits in a list until the hole is too small. All other free intervals are kept by start, by end and by
    length, so that a search looks at the different lengths (few hundred at most) and not at every gap.

    Attributes:
        next_unit, hole_end: The hole. Who needs one unit may take `next_unit` when it is below `hole_end`.
        released_units: Who gives one unit back may put it there; `put_back` has to be called now and then.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = DEFAULT_IOVA_RANGES, cursor: int = 0) -> None:
        """Start with everything free.

        Args:
            ranges: Usable IOVAs, `(first, last)` with `last` inclusive.
            cursor: IOVA where the search starts.
        """
        self.next_unit = cursor >> _SHIFT
        self.hole_end = self.next_unit
        self.released_units: list[int] = []
        self._released: list[tuple[int, int]] = []
        self._seen = 0  # how many of the released units are known to lie before the cursor
        self._following: list[int] = []  # the next intervals behind the cursor, the nearest one last
        self._around: int | None = None  # the interval that begins before the cursor and ends behind it
        self._lengths: dict[int, int] = {}  # start -> length, in units
        self._starts: dict[int, int] = {}  # end -> start
        self._bins: dict[int, Starts] = {}  # length -> starts
        end = 1
        for first, last in sorted(ranges):
            start = max(slabs(first), end)
            end = max(end, (last + 1) >> _SHIFT)
            if start < end:
                self._insert(start, end - start)

    @property
    def cursor(self) -> int:
        """The IOVA where the next search starts."""
        return self.next_unit << _SHIFT

    @property
    def free(self) -> int:
        """Bytes that are free."""
        self._settle()
        return sum(self._lengths.values()) << _SHIFT

    @property
    def largest(self) -> int:
        """Bytes of the largest gap."""
        self._settle()
        return max(self._bins, default=0) << _SHIFT

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
        start = self.next_unit
        end = start + ((size + IOVA_SLAB_SIZE - 1) >> _SHIFT)
        if end <= self.hole_end and alignment <= IOVA_SLAB_SIZE:
            self.next_unit = end
            return start << _SHIFT
        return self._allocate_elsewhere(size, slabs(size), slabs(alignment)) << _SHIFT

    def allocate_below(self, size: int, last: int) -> int:
        """Take whole units as `allocate` does, none of them beyond the IOVA `last`.

        Where the cursor is beyond it already, the lowest gap is taken, and the cursor stays.

        Raises:
            NoIovaSpace: No gap there is large enough.
        """
        length = slabs(size)
        if (self.next_unit + length << _SHIFT) - 1 <= last:
            iova = self.allocate(size)
            if iova + (length << _SHIFT) - 1 <= last:
                return iova
            self.release(iova, size)
        self._following.clear()
        self._settle()
        found = self._search(length, 1, 0)
        if found is None or (found[1] + length << _SHIFT) - 1 > last:
            raise errors.NoIovaSpace("size", size, f"none below {last:#x}")
        self.reserve(found[1] << _SHIFT, size)
        return found[1] << _SHIFT

    def reserve(self, iova: int, size: int) -> bool:
        """Take the units of `size` bytes at `iova`; tell whether they were free (otherwise nothing is taken)."""
        self._following.clear()
        self._settle()
        start, length = iova >> _SHIFT, slabs(size)
        interval = self._holding(start)
        if interval is None or interval + self._lengths[interval] < start + length:
            return False
        end = self._cut(interval, start)
        if start + length < end:
            self._insert(start + length, end - start - length)
        return True

    def release(self, iova: int, size: int) -> None:
        """Give the units of `size` bytes at `iova` back; they must have been taken so."""
        if size <= IOVA_SLAB_SIZE:
            self.released_units.append(iova >> _SHIFT)
        else:
            self._released.append((iova >> _SHIFT, slabs(size)))
        if len(self._released) + len(self.released_units) > _PENDING:
            self.put_back()

    def put_back(self) -> None:
        """Put everything released back among the free intervals."""
        released, self._released = self._released, []
        units = self.released_units
        self._seen = 0
        self._following.clear()
        while units:
            released.append((units.pop(), 1))
        released.sort()
        start = end = 0
        for first, length in released:
            if first != end:
                if start < end:
                    self._insert(start, end - start)
                start = first
            end = first + length
        if start < end:
            self._insert(start, end - start)

    def _allocate_elsewhere(self, size: int, length: int, step: int) -> int:
        if length == step == 1 and self.next_unit == self.hole_end and self._all_behind():
            interval = self._next_interval()
            if interval is not None:
                self.hole_end = interval + self._remove(interval)
                self.next_unit = interval + 1
                return interval
        self._following.clear()
        self._settle()
        found = self._search(length, step, self.next_unit)
        if found is None:
            found = self._search(length, step, 0)
        if found is None:
            raise errors.NoIovaSpace("size", size, f"free {self.free:#x}, largest gap {self.largest:#x}")
        interval, start = found
        self.hole_end = self._cut(interval, start)
        self.next_unit = start + length
        self._around = None  # the cursor is where the hole begins, and the hole is no interval
        return start

    def _all_behind(self) -> bool:
        """Tell whether all that waits lies before the cursor: a search onwards needs none of it."""
        if self._released:
            return False
        units = self.released_units
        for index in range(self._seen, len(units)):
            if units[index] >= self.next_unit:
                return False
        self._seen = len(units)
        return True

    def _next_interval(self) -> int | None:
        """Take the nearest interval behind the cursor from those looked up together; None when they were the last."""
        if not self._following:
            low = self.next_unit
            if self._around is not None:
                return None
            for starts in self._bins.values():
                self._following += [start for start in starts.in_group(low >> _GROUP) if start >= low]
            self._following.sort(reverse=True)
        return self._following.pop() if self._following else None

    def _search(self, length: int, step: int, low: int) -> tuple[int, int] | None:
        """Return the interval and the lowest start at or above `low` where `length` units fit."""
        interval = low if low in self._lengths else self._around if low == self.next_unit else None
        if interval is not None:
            start = -(-low // step) * step
            if start + length <= interval + self._lengths[interval]:
                return interval, start
        best: tuple[int, int] | None = None
        for size, starts in self._bins.items():
            interval = starts.at_or_after(low) if size >= length else None
            while interval is not None and (best is None or interval < best[0]):
                start = -(-interval // step) * step
                if start + length <= interval + size:
                    best = interval, start
                else:
                    interval = starts.at_or_after(interval + 1)
        return best

    def _holding(self, unit: int) -> int | None:
        """Return the start of the interval that a unit lies in."""
        if unit in self._lengths:
            return unit
        for length, starts in self._bins.items():
            start = starts.at_or_before(unit)
            if start is not None and unit < start + length:
                return start
        return None

    def _settle(self) -> None:
        """Put the hole and everything released back among the other intervals."""
        if self.next_unit < self.hole_end:
            self._released.append((self.next_unit, self.hole_end - self.next_unit))
            self.hole_end = self.next_unit
        if self._released or self.released_units:
            self.put_back()

    def _cut(self, interval: int, start: int) -> int:
        """Take an interval out, leave what lies before `start`, and return its end."""
        end = interval + self._remove(interval)
        if interval < start:
            self._insert(interval, start - interval)
        return end

    def _insert(self, start: int, length: int) -> None:
        """Add a free interval, together with its free neighbours."""
        if start + length in self._lengths:
            length += self._remove(start + length)
        before = self._starts.get(start)
        if before is not None:
            length += self._remove(before)
            start = before
        if start < self.next_unit < start + length:
            self._around = start
        self._lengths[start] = length
        self._starts[start + length] = start
        self._bins.setdefault(length, Starts()).add(start)

    def _remove(self, start: int) -> int:
        if start == self._around:
            self._around = None
        length = self._lengths.pop(start)
        del self._starts[start + length]
        starts = self._bins[length]
        starts.remove(start)
        if not starts:
            del self._bins[length]
        return length
