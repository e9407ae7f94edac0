"""Live ranges of memory that have an IOVA, found by virtual address or by IOVA."""

from __future__ import annotations

from bisect import bisect_left, insort

from usdm.limits import IOVA_SLAB_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdm.slab import Block

    # first virtual address, its end, IOVA minus virtual address, which units are in use (None: all), blocks by address
    Entry = tuple[int, int, int, bytearray | None, dict[int, Block]]

_LAST = IOVA_SLAB_SIZE - 1

# In place of blocks: nothing can be freed by its address.
USER: dict[int, Block] = {}
_LARGE: dict[int, Block] = {}
# Stands where several regions share 2 MiB of virtual addresses: no address lies in it.
_SHARED: Entry = (1, 0, 0, None, _LARGE)


class Region:
    """A contiguous virtual range with a contiguous IOVA range of the same size.

    Attributes:
        virt: First virtual address, a multiple of 4 KiB.
        size: Bytes, a multiple of 4 KiB.
        iova: First IOVA, a multiple of 2 MiB.
        node: NUMA node that was asked for, -1 for any.
        owned: The memory belongs to USDM, which can give it back; otherwise it is the program's own.
        kind: `slab`, `large` or `user`.
    """

    __slots__ = ("iova", "node", "size", "virt")
    owned = False
    kind = "user"

    def __init__(self, virt: int, size: int, node: int = -1, iova: int = 0) -> None:
        self.virt = virt
        self.size = size
        self.node = node
        self.iova = iova

    def entry(self) -> Entry:
        """Return what a translation needs to know."""
        return self.virt, self.virt + self.size, self.iova - self.virt, None, _LARGE if self.owned else USER


class LargeAllocation(Region):
    """One allocation with pages, a mapping and IOVA units of its own; `asked` is the size asked for."""

    __slots__ = ("asked",)
    owned = True
    kind = "large"

    def __init__(self, virt: int, size: int, node: int, asked: int) -> None:
        super().__init__(virt, size, node)
        self.asked = asked


class RegionTable:
    """All live regions. No two overlap, neither in virtual addresses nor in IOVAs.

    A region is either in both indexes or in none, so a translation ends with its mapping, for every page of it (D1, D9
    of the C library), and both directions work for every kind of region (A2).

    Both indexes are by 2 MiB. A region has whole units of 2 MiB of IOVA to itself, so that index is exact. Regions
    can share 2 MiB of virtual addresses; such a piece has a short sorted list in `shared`, and in `virts` an entry that
    ends at 0. What is read without a lock can be old by one change: every reader looks whether the entry fits.

    Attributes:
        virts: virtual address >> 21 to entry. Read without a lock; never replaced.
        iovas: IOVA >> 21 to entry. Read without a lock; never replaced.
        shared: virtual address >> 21 to the entries of several regions. Read without a lock; never replaced.
        owned: First virtual address to region, of memory that USDM owns. Memory of the program has entries only:
            there can be 65,535, made and ended often.
    """

    def __init__(self) -> None:
        self.virts: dict[int, Entry] = {}
        self.iovas: dict[int, Entry] = {}
        self.shared: dict[int, list[Entry]] = {}
        self.owned: dict[int, Region] = {}

    def __len__(self) -> int:
        return len(self._entries())

    def __iter__(self) -> Iterator[Region]:
        """Give the regions by ascending virtual address; the table may change meanwhile."""
        return iter([self._region(entry) for entry in sorted(self._entries())])

    def add(self, region: Region) -> None:
        """Add a region that overlaps no other."""
        if region.owned:
            self.owned[region.virt] = region
        self.enter(region.entry())

    def remove(self, region: Region) -> None:
        """Remove a region: its translations end."""
        entry = self.entry_at(region.virt)
        self.owned.pop(region.virt, None)
        if entry is not None:
            self.leave(entry)

    def clear(self) -> None:
        """Remove all regions."""
        for table in (self.virts, self.iovas, self.shared, self.owned):
            table.clear()

    def enter(self, entry: Entry) -> None:
        """Add an entry to the indexes."""
        virt, end, distance, _, _ = entry
        first, last = virt >> 21, (end - 1) >> 21
        if self.virts.setdefault(first, entry) is not entry:
            self._share(first, entry)
        if first != last:
            # Only the ends can be shared.
            self.virts.update(dict.fromkeys(range(first + 1, last), entry))
            if self.virts.setdefault(last, entry) is not entry:
                self._share(last, entry)
        unit = (virt + distance) >> 21
        if end - virt <= IOVA_SLAB_SIZE:
            self.iovas[unit] = entry
        else:
            self.iovas.update(dict.fromkeys(range(unit, (end + distance + _LAST) >> 21), entry))

    def leave(self, entry: Entry) -> None:
        """Remove an entry from the indexes."""
        virt, end, distance, _, _ = entry
        first, last = virt >> 21, (end - 1) >> 21
        if first in self.shared:
            self._unshare(first, virt)
        else:
            del self.virts[first]
        if first != last:
            if last in self.shared:
                self._unshare(last, virt)
            else:
                del self.virts[last]
            for piece in range(first + 1, last):
                del self.virts[piece]
        unit = (virt + distance) >> 21
        if end - virt <= IOVA_SLAB_SIZE:
            del self.iovas[unit]
        else:
            for each in range(unit, (end + distance + _LAST) >> 21):
                del self.iovas[each]

    def entry_at(self, address: int) -> Entry | None:
        """Return the entry of the region that holds a virtual address."""
        entry = self.virts.get(address >> 21)
        if entry is _SHARED:
            entries = self.shared[address >> 21]
            index = _after(entries, address) - 1
            entry = entries[index] if index >= 0 else None
        return entry if entry is not None and entry[0] <= address < entry[1] else None

    def at_virt(self, address: int) -> Region | None:
        """Return the region that holds a virtual address."""
        entry = self.entry_at(address)
        return None if entry is None else self._region(entry)

    def overlapping(self, virt: int, size: int) -> Region | None:
        """Return the first region that shares a byte with a virtual range."""
        end = virt + size
        first, last = virt >> 21, (end - 1) >> 21
        if last - first > 1 and self.virts.keys().isdisjoint(range(first + 1, last)):
            pieces: tuple[int, ...] | range = (first, last)
        else:
            pieces = range(first, last + 1)
        for piece in pieces:
            entry = self.virts.get(piece)
            if entry is None:
                continue
            entries = self.shared[piece] if entry is _SHARED else [entry]
            for entry in entries[max(0, _after(entries, virt) - 1) :]:
                if entry[0] >= end:
                    break
                if virt < entry[1]:
                    return self._region(entry)
        return None

    def _region(self, entry: Entry) -> Region:
        virt, end, distance, _, _ = entry
        return self.owned.get(virt) or Region(virt, end - virt, -1, virt + distance)

    def _entries(self) -> list[Entry]:
        """Return all entries: each is at its first unit, and at those that follow."""
        return [entry for unit, entry in self.iovas.items() if (entry[0] + entry[2]) >> 21 == unit]

    def _share(self, piece: int, entry: Entry) -> None:
        if piece not in self.shared:
            self.shared[piece] = [self.virts[piece]]
            self.virts[piece] = _SHARED
        insort(self.shared[piece], entry)

    def _unshare(self, piece: int, virt: int) -> None:
        entries = self.shared[piece]
        del entries[bisect_left(entries, (virt,))]
        if len(entries) == 1:
            self.virts[piece] = entries[0]
            del self.shared[piece]


def _after(entries: list[Entry], address: int) -> int:
    """Return the index of the first entry that begins behind an address."""
    return bisect_left(entries, (address + 1,))
