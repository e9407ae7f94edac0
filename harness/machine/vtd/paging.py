"""Page tables of either stage: their entries, and what they map.

Intel Virtualization Technology for Directed I/O, 3.6 "First-Stage Translation", 3.7 "Second-Stage Translation", 9.7
"First-Stage Paging Entries" and 9.8 "Second-Stage Paging Entries". A table has 512 entries of 8 bytes. An entry of
level 1 maps 4 KiB; one of level 2 or 3 maps 2 MiB or 1 GiB when its bit 7 (PS) is set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from harness.machine.vtd.bits import PAGE, PAGE_SHIFT, get_address, put_address

Read = Callable[[int, int], bytes]
"""Reads physical memory: ``read(address, size)``."""

ENTRIES: Final = 512
_STRIDE: Final = 9
_LARGE: Final = 1 << 7
_LARGEST_LEAF: Final = 3
# A page: IOVA, physical address, bytes, whether a device may read it, and write it.
_Page = tuple[int, int, int, bool, bool]
_TABLE: Final = struct.Struct(f"<{ENTRIES}Q")


@dataclass(frozen=True, slots=True)
class Stage:
    """How a stage writes what may be done.

    Args:
        name: ``first`` or ``second``.
        present: an entry with any of these bits is there.
        read: with all of these bits in every entry on the way a device may read.
        write: the same for writing.
        signed: addresses are canonical: the upper half lies at the end of 64 bits.
    """

    name: str
    present: int
    read: int
    write: int
    signed: bool


SECOND = Stage("second", present=0b011, read=0b001, write=0b010, signed=False)
"""R is bit 0, W is bit 1; an entry with neither is not there."""

FIRST = Stage("first", present=0b001, read=0b101, write=0b111, signed=True)
"""P is bit 0, R/W is bit 1, U/S is bit 2, without which only privileged requests pass: those of devices are not."""


def page_size(level: int) -> int:
    """Bytes that one entry of a table of this level covers; level 1 has the pages of 4 KiB."""
    return PAGE << _STRIDE * (level - 1)


def table_entry(table: int) -> int:
    """An entry of either stage that leads to a table, and restricts nothing; raises ValueError for a bad address."""
    return put_address(table) | 0b111


def page_entry(stage: Stage, level: int, address: int, *, read: bool = True, write: bool = True) -> int:
    """An entry that maps a page.

    Args:
        stage: the table's stage.
        level: the table's level, 1 to 3.
        address: what is mapped: a multiple of ``page_size(level)``.
        read: a device may read it.
        write: a device may write it. (The first stage has no pages that can only be written.)

    Raises:
        ValueError: there are no such pages, or the address is none of them.
    """
    if not 1 <= level <= _LARGEST_LEAF or address % page_size(level):
        raise ValueError(f"{address:#x} is no address of a page of level {level}")
    if stage.signed and write and not read:
        raise ValueError("the first stage has no pages that can only be written")
    return put_address(address) | read * stage.read | write * stage.write | (_LARGE if level > 1 else 0)


@dataclass(frozen=True, slots=True)
class Run:
    """Pages one after the other, of one size and with equal permissions, that lead to memory in one piece.

    Args:
        iova: the first one's IOVA, a multiple of ``page``.
        physical: where it leads to, a multiple of ``page``.
        size: bytes, a multiple of ``page``.
        page: bytes of each page: 4096, 2 MiB or 1 GiB.
        read: a device may read.
        write: a device may write.
    """

    iova: int
    physical: int
    size: int
    page: int
    read: bool
    write: bool


@dataclass(frozen=True, slots=True)
class PageTables:
    """The page tables of a requester.

    Args:
        stage: first or second.
        levels: 3, 4 or 5.
        table: address of the topmost table.
        domain: the domain's id (DID).
    """

    stage: Stage
    levels: int
    table: int
    domain: int

    def runs(self, read: Read, first: int, size: int) -> Iterator[Run]:
        """What is mapped in a range of IOVAs, ascending; a page that lies in it in part is given whole.

        Args:
            read: reads the tables.
            first: the first IOVA, 0 to 2**64 - 1.
            size: bytes, >= 1.
        """
        for low, high, moved in self._reachable():
            start, stop = max(first - moved, low), min(first + size - moved, high)
            if start < stop:
                rights = self.stage.read | self.stage.write
                yield from _join(self._leaves(read, self.table, self.levels, 0, (start, stop), rights), moved)

    def _reachable(self) -> tuple[tuple[int, int, int], ...]:
        """Ranges of addresses in the tables (first, end) and what is added to one to make an IOVA of it."""
        end = 1 << PAGE_SHIFT + _STRIDE * self.levels
        if self.stage.signed:
            return (0, end // 2, 0), (end // 2, end, (1 << 64) - end)
        return ((0, end, 0),)

    def _leaves(
        self, read: Read, table: int, level: int, base: int, span: tuple[int, int], rights: int
    ) -> Iterator[_Page]:
        """The pages below a table, each by itself.

        Args:
            read: reads the tables.
            table: the table's address.
            level: its level.
            base: the first address that it covers.
            span: the addresses of interest in what it covers: the first, and the end.
            rights: the bits that every entry above gives.
        """
        covers = page_size(level)
        first, last = (span[0] - base) // covers, (span[1] - 1 - base) // covers
        entries = _TABLE.unpack(read(table, PAGE))
        may_read, may_write = self.stage.read, self.stage.write
        for place in range(first, last + 1):
            entry = entries[place]
            common = entry & rights
            readable, writable = common & may_read == may_read, common & may_write == may_write
            if not entry & self.stage.present or not (readable or writable):
                continue
            here = base + place * covers
            if level == 1 or (entry & _LARGE and level <= _LARGEST_LEAF):
                # The bits of a large page's address below its size say other things, or are reserved.
                physical = get_address(entry) // covers * covers
                yield here, physical, covers, readable, writable
            else:
                below = max(span[0], here), min(span[1], here + covers)
                yield from self._leaves(read, get_address(entry), level - 1, here, below, common)


def _join(pages: Iterable[_Page], moved: int) -> Iterator[Run]:
    """Make runs of pages in ascending order, as long as they can be; ``moved`` is added to each IOVA."""
    held: _Page | None = None
    size = 0
    for page in pages:
        if held is not None:
            if page[2:] == held[2:] and page[0] == held[0] + size and page[1] == held[1] + size:
                size += page[2]
                continue
            yield Run(held[0] + moved, held[1], size, *held[2:])
        held, size = page, page[2]
    if held is not None:
        yield Run(held[0] + moved, held[1], size, *held[2:])
