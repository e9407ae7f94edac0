"""Entries of icp_sal_iommu: physical ranges of this process that the registered container maps at IOVAs of choice.

VFIO maps virtual addresses. So an entry consists of pieces, each a run of virtual pages that have the wanted frames,
and after the mapping, when the pages are pinned, their frames are looked at once more.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right, insort

from usdm import errors
from usdm.limits import IOVA_SLAB_SIZE, PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.container import AttachedContainer
    from usdm.frames import Frames
    from usdm.space import AddressSpace

    Piece = tuple[int, int, int]  # first virtual address, IOVA, size in bytes


class Entry:
    """One entry: `size` bytes at the physical address `phaddr`, which devices reach at `iova`; all in whole pages."""

    __slots__ = ("iova", "phaddr", "pieces", "size")

    def __init__(self, phaddr: int, iova: int, size: int, pieces: list[Piece]) -> None:
        self.phaddr = phaddr
        self.iova = iova
        self.size = size
        self.pieces = pieces


class Entries:
    """The entries of a container with an IOMMU. No two share an IOVA.

    The units of 2 MiB that an entry lies in are taken from USDM's own IOVAs, so that USDM hands none of them out; a
    unit that USDM has handed out is refused. Several entries can share a unit, as 1:1 entries of single pages do.
    """

    def __init__(self, space: AddressSpace, frames: Frames) -> None:
        self._space = space
        self._frames = frames
        self._iovas: list[int] = []
        self._entries: dict[int, Entry] = {}
        self._users: dict[int, int] = {}  # unit of 2 MiB -> how many entries, and pieces left, lie in it
        self._taken: set[int] = set()  # those of them that were free in USDM's space, and go back there
        self._left: list[Piece] = []  # the kernel did not unmap them when it should have

    def __len__(self) -> int:
        return len(self._iovas)

    def all(self) -> list[Entry]:
        """Return the entries by ascending IOVA."""
        return [self._entries[iova] for iova in self._iovas]

    @property
    def mappings(self) -> int:
        """How many mappings of the container they take."""
        return sum(len(entry.pieces) for entry in self._entries.values()) + len(self._left)

    def add(self, container: AttachedContainer, phaddr: int, iova: int, size: int) -> None:
        """Add an entry, or change nothing. The three numbers are multiples of 4 KiB, the ranges end within 64 bits.

        Raises:
            IovaReserved, IovaTaken: Where it shall be.
            ForeignMemory, PhysicalAddressHidden: What shall be there.
            MapFailed: The kernel refused a piece.
            PageMoved: A page got another frame before it was pinned.
        """
        self._retry(container)
        self._refuse(container, iova, size)
        owned = [(region.virt, region.virt + region.size) for region in self._space.regions.owned.values()]
        entry = Entry(phaddr, iova, size, [])
        for virt, count in self._frames.find(phaddr // PAGE_SIZE, size // PAGE_SIZE, owned):
            entry.pieces.append((virt, iova, count * PAGE_SIZE))
            iova += count * PAGE_SIZE
        self._take(entry.iova, size)
        mapped: list[Piece] = []
        try:
            for piece in entry.pieces:
                container.map(*piece)
                mapped.append(piece)
            self._same_frames(entry)
        except BaseException as error:
            self._unmap_all(container, mapped, error)
            self._give(entry.iova, size)
            raise
        self._entries[entry.iova] = entry
        insort(self._iovas, entry.iova)

    def remove(self, container: AttachedContainer, iova: int, size: int) -> None:
        """Remove the entries that a range consists of.

        Raises:
            NotRemapped, PartOfEntry: The range does not consist of whole entries.
            UnmapFailed: The kernel refused, and the entries are as before, or, when even that is refused, have the
                pieces that are still mapped; the call can be made again. Or (ENOENT) somebody had unmapped one beside
                USDM, and the entries are gone.
        """
        self._retry(container)
        entries = self._whole(iova, size)
        ended: list[Piece] = []
        missing = 0
        try:
            for entry in entries:
                for piece in entry.pieces:
                    missing += piece[2] - container.unmap(piece[1], piece[2])
                    ended.append(piece)
        except errors.UnmapFailed as error:
            self._restore(container, entries, ended, error)
            raise
        for entry in entries:
            self._forget(entry)
        if missing:
            detail = f"{missing:#x} of {size:#x} bytes were not mapped any more"
            raise errors.UnmapFailed("iova", iova, errno.ENOENT, detail)

    def end(self, container: AttachedContainer) -> list[errors.UnmapFailed]:
        """Remove all entries, before the container goes; return what the kernel refused."""
        failures: list[errors.UnmapFailed] = []
        for _, iova, size in [piece for entry in self.all() for piece in entry.pieces] + self._left:
            try:
                container.unmap(iova, size)
            except errors.UnmapFailed as error:
                failures.append(error)
        for unit in self._taken:
            self._space.iovas.release(unit * IOVA_SLAB_SIZE, IOVA_SLAB_SIZE)
        for table in (self._iovas, self._entries, self._users, self._taken, self._left):
            table.clear()
        return failures

    # ---- which IOVAs

    def _refuse(self, container: AttachedContainer, iova: int, size: int) -> None:
        """Raise the error of a range where no entry can be."""
        last = iova + size - 1
        if not any(low <= iova and last <= high for low, high in container.iova_ranges):
            usable = ", ".join(f"{low:#x} to {high:#x}" for low, high in container.iova_ranges)
            raise errors.IovaReserved("iova", iova, f"size {size:#x}; usable are {usable}")
        index = bisect_right(self._iovas, last) - 1
        if index >= 0:
            other = self._entries[self._iovas[index]]
            if iova < other.iova + other.size:
                raise errors.IovaTaken("iova", iova, f"the entry at {other.iova:#x}, size {other.size:#x}, is there")
        if self._space.dma is not None:
            held = self._space.dma.granules.holder(iova, size)
            if held is not None:
                detail = f"USDM has given out {held[0]:#x}, size {held[1]:#x}, to ranges of dma_iova"
                raise errors.IovaTaken("iova", iova, detail)
        regions = self._space.regions
        for unit in _units(iova, size):
            owner = regions.iovas.get(unit)
            if owner is not None:
                region = regions.at_virt(owner[0])
                what = "" if region is None else f" of the {region.kind} memory at {region.virt:#x}"
                raise errors.IovaTaken("iova", iova, f"USDM has given out {unit * IOVA_SLAB_SIZE:#x}{what}")

    def _take(self, iova: int, size: int) -> None:
        for unit in _units(iova, size):
            users = self._users[unit] = self._users.get(unit, 0) + 1
            # Units that are not whole, at the ends of the container's ranges, are in nobody's space.
            if users == 1 and self._space.iovas.reserve(unit * IOVA_SLAB_SIZE, IOVA_SLAB_SIZE):
                self._taken.add(unit)

    def _give(self, iova: int, size: int) -> None:
        for unit in _units(iova, size):
            self._users[unit] -= 1
            if not self._users[unit]:
                del self._users[unit]
                if unit in self._taken:
                    self._taken.remove(unit)
                    self._space.iovas.release(unit * IOVA_SLAB_SIZE, IOVA_SLAB_SIZE)

    # ---- what is mapped

    def _same_frames(self, entry: Entry) -> None:
        for virt, iova, size in entry.pieces:
            wanted = (entry.phaddr + iova - entry.iova) // PAGE_SIZE
            for index, frame in enumerate(self._frames.of(virt, size // PAGE_SIZE)):
                if frame != wanted + index:
                    place = (wanted + index) * PAGE_SIZE
                    now = f"now at {frame * PAGE_SIZE:#x}" if frame else "gone"
                    raise errors.PageMoved("phaddr", place, f"the page at {virt + index * PAGE_SIZE:#x} is {now}")

    def _unmap_all(self, container: AttachedContainer, pieces: list[Piece], error: BaseException) -> None:
        """Unmap pieces of an entry that is not to be. What the kernel refuses keeps its IOVA, and is tried again."""
        for piece in pieces:
            try:
                container.unmap(piece[1], piece[2])
            except errors.UnmapFailed as left:
                error.add_note(f"left mapped: {left}")
                self._take(piece[1], piece[2])
                self._left.append(piece)

    def _retry(self, container: AttachedContainer) -> None:
        """Unmap what the kernel refused to unmap so far."""
        for piece in self._left[:]:
            try:
                container.unmap(piece[1], piece[2])
            except errors.UnmapFailed:
                continue  # it was told when it happened, and its IOVA stays taken
            self._left.remove(piece)
            self._give(piece[1], piece[2])

    def _restore(
        self, container: AttachedContainer, entries: list[Entry], ended: list[Piece], error: errors.UnmapFailed
    ) -> None:
        """Map pieces again after an unmap that came half way; entries lose those that cannot be."""
        back: list[Piece] = []
        try:
            for piece in ended:
                container.map(*piece)
                back.append(piece)
            for entry in entries:
                self._same_frames(entry)
        except errors.UsdmError as lost:
            error.add_note(f"the rest of the range was unmapped: {lost}")
            self._unmap_all(container, back, error)
            for entry in entries:
                entry.pieces = [piece for piece in entry.pieces if piece not in ended]

    # ---- the table

    def _whole(self, iova: int, size: int) -> list[Entry]:
        """Return the entries that a range consists of."""
        found: list[Entry] = []
        end = iova + size
        index = bisect_left(self._iovas, iova)
        if index:
            before = self._entries[self._iovas[index - 1]]
            if iova < before.iova + before.size:
                raise errors.PartOfEntry("iova", iova, f"the entry is {before.iova:#x}, size {before.size:#x}")
        while iova < end:
            entry = self._entries.get(iova)
            if entry is None:
                raise errors.NotRemapped("iova", iova, f"size {end - iova:#x}")
            if entry.iova + entry.size > end:
                raise errors.PartOfEntry("size", size, f"the entry is {entry.iova:#x}, size {entry.size:#x}")
            found.append(entry)
            iova += entry.size
        return found

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.iova]
        del self._iovas[bisect_left(self._iovas, entry.iova)]
        self._give(entry.iova, entry.size)


def _units(iova: int, size: int) -> range:
    return range(iova // IOVA_SLAB_SIZE, (iova + size - 1) // IOVA_SLAB_SIZE + 1)
