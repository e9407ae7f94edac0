"""From a requester to its page tables, as the remapping hardware goes: registers, root table, context table, PASID.

Intel Virtualization Technology for Directed I/O, 3.4 "Mapping Devices to Domains" and 3.5 to 3.7. Everything here is a
pure function of the memory that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from harness.machine.vtd.entries import (
    ContextEntry,
    PasidDirectoryEntry,
    PasidTableEntry,
    PasidType,
    RootEntry,
    ScalableContextEntry,
    TranslationType,
    levels_of,
)
from harness.machine.vtd.paging import FIRST, SECOND, PageTables, Read
from harness.machine.vtd.registers import BASE, SIZE, Registers, TableMode

_HALF = 128
_PASIDS_OF_A_TABLE = 64


class Way(StrEnum):
    """What happens to a requester's DMA before any page table is looked at."""

    TRANSLATED = "translated"
    DISABLED = "translation disabled"
    PASS_THROUGH = "pass-through"  # noqa: S105 - not a password
    ABORTED = "abort mode"
    NO_ROOT = "root entry not present"
    NO_CONTEXT = "context entry not present"
    NO_DIRECTORY = "PASID directory entry not present"
    NO_PASID = "PASID table entry not present"
    RESERVED = "an entry has a reserved value"
    NESTED = "nested translation"

    @property
    def untranslated(self) -> bool:
        """Whether every IOVA is the physical address itself."""
        return self in (Way.DISABLED, Way.PASS_THROUGH)


@dataclass(frozen=True, slots=True)
class Requester:
    """What the tables say of a requester.

    Args:
        way: what happens to its DMA.
        mode: of the root table; None when translation is disabled, because nobody looks at it then.
        tables: its page tables, for ``Way.TRANSLATED`` only.
    """

    way: Way
    mode: TableMode | None = None
    tables: PageTables | None = None


def find_requester(read: Read, source_id: int, base: int = BASE) -> Requester:
    """Find a requester's page tables, for its requests without a PASID.

    Args:
        read: reads physical memory, registers of devices included.
        source_id: bus << 8 | device << 3 | function.
        base: physical address of the remapping unit's registers.
    """
    registers = Registers.decode(read(base, SIZE))
    if not registers.enabled:
        return Requester(Way.DISABLED)
    root, bus, place = registers.root, source_id >> 8, source_id & 0xFF
    match root.mode:
        case TableMode.LEGACY | TableMode.SCALABLE as mode:
            entry = RootEntry.decode(read(root.table + bus * RootEntry.SIZE, RootEntry.SIZE))
            if mode is TableMode.LEGACY:
                found = Requester(Way.NO_ROOT) if entry.lower is None else _legacy(read, entry.lower, place)
            else:
                half = entry.upper if place >= _HALF else entry.lower
                found = Requester(Way.NO_ROOT) if half is None else _scalable(read, half, place % _HALF)
            return Requester(found.way, mode, found.tables)
        case TableMode.ABORT:
            return Requester(Way.ABORTED, root.mode)
        case _:
            return Requester(Way.RESERVED, root.mode)


def _legacy(read: Read, table: int, place: int) -> Requester:
    """Through a context table of legacy mode."""
    context = ContextEntry.decode(read(table + place * ContextEntry.SIZE, ContextEntry.SIZE))
    if not context.present:
        return Requester(Way.NO_CONTEXT)
    if context.type is TranslationType.PASS_THROUGH:
        return Requester(Way.PASS_THROUGH)
    levels = levels_of(context.width)
    if context.type is TranslationType.RESERVED or levels is None:
        return Requester(Way.RESERVED)
    return Requester(Way.TRANSLATED, tables=PageTables(SECOND, levels, context.table, context.domain))


def _scalable(read: Read, table: int, place: int) -> Requester:
    """Through one half's context table of scalable mode, and the PASID that requests without one have."""
    context = ScalableContextEntry.decode(read(table + place * ScalableContextEntry.SIZE, ScalableContextEntry.SIZE))
    if not context.present:
        return Requester(Way.NO_CONTEXT)
    index, rest = divmod(context.rid_pasid, _PASIDS_OF_A_TABLE)
    if context.rid_pasid >= context.pasids:
        return Requester(Way.RESERVED)
    size = PasidDirectoryEntry.SIZE
    directory = PasidDirectoryEntry.decode(read(context.directory + index * size, size))
    if directory.table is None:
        return Requester(Way.NO_DIRECTORY)
    size = PasidTableEntry.SIZE
    entry = PasidTableEntry.decode(read(directory.table + rest * size, size))
    return _pasid(entry) if entry.present else Requester(Way.NO_PASID)


def _pasid(entry: PasidTableEntry) -> Requester:
    """What a PASID table entry that is present says."""
    match entry.type:
        case PasidType.PASS_THROUGH:
            return Requester(Way.PASS_THROUGH)
        case PasidType.NESTED:
            # Its first stage's tables are found through the second: nothing here makes such tables.
            return Requester(Way.NESTED)
        case PasidType.FIRST if entry.first_width in (0, 1):
            return Requester(Way.TRANSLATED, tables=PageTables(FIRST, 4 + entry.first_width, entry.first, entry.domain))
        case PasidType.SECOND if (levels := levels_of(entry.width)) is not None:
            return Requester(Way.TRANSLATED, tables=PageTables(SECOND, levels, entry.second, entry.domain))
        case _:
            return Requester(Way.RESERVED)
