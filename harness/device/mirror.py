"""The live mappings of a function's address space, as the client tells of them.

QEMU sends a mapping for each entry of the guest's IOMMU page tables, and takes it away when the guest invalidates it.
So this is what the IOMMU lets the function reach at any time. QEMU always says that a mapping can be read: one that can
only be written looks like one for both.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NamedTuple

from harness.device.wire import Access

ALL: Final = 1 << 64


class Mapping(NamedTuple):
    """A range that the function can reach.

    Args:
        iova: its first IOVA.
        size: bytes.
        access: see :class:`harness.device.wire.Access`.
    """

    iova: int
    size: int
    access: int


class Overlap(Exception):
    """A mapping of what is mapped already."""


class Mirror:
    """The mappings.

    Attributes:
        generation: changes with every mapping that comes or goes.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._size: dict[int, tuple[int, int]] = {}  # iova: size, access
        self._starts: list[int] = []  # ascending

    def __len__(self) -> int:
        return len(self._size)

    def add(self, iova: int, size: int, access: int) -> None:
        """Take in a mapping.

        Args:
            iova: the first IOVA.
            size: bytes, >= 1.
            access: what is allowed.

        Raises:
            Overlap: part of it is mapped already.
            ValueError: it is empty, or exceeds 64 bits.
        """
        if size <= 0 or iova + size > ALL:
            raise ValueError(f"{size:#x} bytes at {iova:#x}")
        starts = self._starts
        at = bisect_left(starts, iova)
        if at and starts[at - 1] + self._size[starts[at - 1]][0] > iova:
            raise Overlap(f"{iova:#x} is part of a mapping at {starts[at - 1]:#x}")
        if at < len(starts) and starts[at] < iova + size:
            raise Overlap(f"{size:#x} bytes at {iova:#x} meet a mapping at {starts[at]:#x}")
        starts.insert(at, iova)
        self._size[iova] = size, int(access)
        self.generation += 1

    def remove(self, iova: int, size: int) -> int:
        """Take away what is mapped in a range; a mapping that lies in it in part keeps the rest.

        Returns:
            How many bytes were mapped there.
        """
        if size <= 0:
            return 0
        starts = self._starts
        end = iova + size
        first = bisect_left(starts, iova)
        if first and starts[first - 1] + self._size[starts[first - 1]][0] > iova:
            first -= 1
        last = bisect_left(starts, end, first)
        if first == last:
            return 0
        removed = 0
        kept: list[tuple[int, int, int]] = []
        for start in starts[first:last]:
            length, access = self._size.pop(start)
            stop = start + length
            if start < iova:
                kept.append((start, iova - start, access))
            if stop > end:
                kept.append((end, stop - end, access))
            removed += min(stop, end) - max(start, iova)
        starts[first:last] = [start for start, _, _ in kept]
        for start, length, access in kept:
            self._size[start] = length, access
        self.generation += 1
        return removed

    def clear(self) -> None:
        """Take everything away."""
        self._size.clear()
        self._starts = []
        self.generation += 1

    def covers(self, iova: int, size: int, access: int) -> bool:
        """Whether all of a range is mapped with at least this access."""
        starts, access = self._starts, int(access)  # an IntFlag's arithmetic is slow
        at = bisect_left(starts, iova + 1) - 1
        end = iova + size
        while 0 <= at < len(starts):
            start = starts[at]
            length, allowed = self._size[start]
            if start > iova or start + length <= iova or allowed & access != access:
                return False
            iova = start + length
            if iova >= end:
                return True
            at += 1
        return False

    def ranges(self) -> list[Mapping]:
        """The mappings, ascending; those that follow each other with the same access as one."""
        found: list[Mapping] = []
        start = end = access = 0
        for iova in self._starts:
            size, allowed = self._size[iova]
            if end and iova == end and allowed == access:
                end += size
                continue
            if end:
                found.append(Mapping(start, end - start, access))
            start, end, access = iova, iova + size, allowed
        if end:
            found.append(Mapping(start, end - start, access))
        return found


def letters(access: int) -> str:
    """An access as ``r``, ``w`` or ``rw``."""
    return "r" * bool(access & Access.READ) + "w" * bool(access & Access.WRITE)
