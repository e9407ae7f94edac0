"""Live ranges of memory that have an IOVA, found by virtual address or by IOVA."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Region:
    """A contiguous virtual range with a contiguous IOVA range of the same size.

    Attributes:
        virt: First virtual address, a multiple of 4 KiB.
        size: Bytes, a multiple of 4 KiB.
        iova: First IOVA, a multiple of 2 MiB.
        owned: The memory belongs to USDM, which can give it back; otherwise it is the program's own.
    """

    __slots__ = ("iova", "size", "virt")
    owned = False

    def __init__(self, virt: int, size: int) -> None:
        self.virt = virt
        self.size = size
        self.iova = 0

    def block(self, offset: int) -> tuple[int, int] | None:
        """Return offset and size of what the program holds at `offset`, or None when it holds nothing there."""
        return (0, self.size) if 0 <= offset < self.size else None


class UserMapping(Region):
    """Memory of the program, mapped by `map`."""

    __slots__ = ()


class LargeAllocation(Region):
    """One allocation with pages, a mapping and IOVA units of its own."""

    __slots__ = ()
    owned = True


class RegionTable:
    """All live regions. No two overlap, neither in virtual addresses nor in IOVAs.

    A region is either in both indexes or in none, so a translation ends with its mapping, for every page of it (D1, D9
    of the C library), and both directions work for every kind of region in logarithmic time (A2).
    """

    def __init__(self) -> None:
        self._virts: list[int] = []
        self._iovas: list[int] = []
        self._by_virt: dict[int, Region] = {}
        self._by_iova: dict[int, Region] = {}

    def __len__(self) -> int:
        return len(self._virts)

    def __iter__(self) -> Iterator[Region]:
        """Give the regions by ascending virtual address; the table may change meanwhile."""
        return iter([self._by_virt[virt] for virt in self._virts])

    def add(self, region: Region) -> None:
        """Add a region that overlaps no other."""
        insort(self._virts, region.virt)
        insort(self._iovas, region.iova)
        self._by_virt[region.virt] = region
        self._by_iova[region.iova] = region

    def remove(self, region: Region) -> None:
        """Remove a region: its translations end."""
        del self._virts[bisect_left(self._virts, region.virt)]
        del self._iovas[bisect_left(self._iovas, region.iova)]
        del self._by_virt[region.virt]
        del self._by_iova[region.iova]

    def at_virt(self, address: int) -> Region | None:
        """Return the region that holds a virtual address."""
        index = bisect_right(self._virts, address) - 1
        if index < 0:
            return None
        region = self._by_virt[self._virts[index]]
        return region if address < region.virt + region.size else None

    def at_iova(self, iova: int) -> Region | None:
        """Return the region that holds an IOVA."""
        index = bisect_right(self._iovas, iova) - 1
        if index < 0:
            return None
        region = self._by_iova[self._iovas[index]]
        return region if iova < region.iova + region.size else None

    def overlapping(self, virt: int, size: int) -> Region | None:
        """Return the first region that shares a byte with a virtual range."""
        first = self.at_virt(virt)
        if first is not None:
            return first
        index = bisect_left(self._virts, virt)
        if index < len(self._virts) and self._virts[index] < virt + size:
            return self._by_virt[self._virts[index]]
        return None
