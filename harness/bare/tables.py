"""The IOMMU's tables in the machine's memory: written as a scenario says, wrong entries included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.bare.layout import Pages
from harness.bare.qtest import Qtest
from harness.bare.spec import BareDeviceSpec, BareSpec
from harness.errors import ConfigurationError
from harness.machine.vtd.bits import PAGE
from harness.machine.vtd.entries import (
    ContextEntry,
    PasidDirectoryEntry,
    PasidTableEntry,
    PasidType,
    RootEntry,
    ScalableContextEntry,
    TranslationType,
    width_of,
)
from harness.machine.vtd.interrupts import InterruptEntry, Validation
from harness.machine.vtd.paging import FIRST, SECOND, Stage, page_entry, page_size, table_entry
from harness.scenario.bare_tables import (
    PAGE_SIZES,
    ContextFields,
    Domain,
    IrteFields,
    RootFields,
    Tables,
)
from harness.scenario.bare_tables import Pages as PagesArgs

_HALF = 128
_PAGE_SHIFT, _STRIDE = 12, 9
_ADDRESS = ((1 << 52) - 1) & ~(PAGE - 1)
_TYPES = {
    "untranslated": TranslationType.UNTRANSLATED_ONLY,
    "device_tlb": TranslationType.DEVICE_TLB,
    "pass_through": TranslationType.PASS_THROUGH,
    "reserved": TranslationType.RESERVED,
}


@dataclass(slots=True)
class DomainTables:
    """A domain as it lies in memory.

    Args:
        id: DID.
        stage: first or second.
        levels: of its page tables.
        top: address of the topmost table.
        places: every table made so far, by its level and the first IOVA that it covers.
    """

    id: int
    stage: Stage
    levels: int
    top: int
    places: dict[tuple[int, int], int] = field(default_factory=dict)


def _set(entry: bytes, bits: Iterable[int]) -> bytes:
    """An entry with further bits set."""
    word = int.from_bytes(entry, "little")
    for bit in bits:
        word |= 1 << bit
    return word.to_bytes(len(entry), "little")


class TablesInMemory:
    """All tables of a scenario.

    Args:
        qtest: the connection.
        spec: the machine.
        tables: what the scenario says.
    """

    def __init__(self, qtest: Qtest, spec: BareSpec, tables: Tables) -> None:
        self._qtest = qtest
        self._spec = spec
        self._pages = Pages()
        self._scalable = tables.mode == "scalable"
        self._contexts: dict[tuple[int, bool], int] = {}  # bus, upper half: context table
        self._directories: dict[int, tuple[int, int]] = {}  # requester: PASID directory, PASID table
        self.root = self._pages.take()
        self.interrupts = self._pages.take()
        self.domains: dict[str, DomainTables] = {}
        self._devices = {device.name: device for device in spec.devices}

    def write(self, tables: Tables) -> None:
        """Write everything that is there before the first step."""
        for number, (name, domain) in enumerate(tables.domains.items(), 1):
            self.domains[name] = self._domain(domain, number)
            for pages in domain.pages:
                self.map(name, pages)
        for name, context in tables.contexts.items():
            self.context(name, context)
        for name, root in tables.roots.items():
            self.write_root(name, root)
        for entry in tables.interrupts.entry:
            self.irte(entry.index, entry)

    def _domain(self, domain: Domain, number: int) -> DomainTables:
        stage = FIRST if domain.stage == "first" else SECOND
        levels = domain.levels or (4 if stage is FIRST or self._spec.aw_bits == 48 else 3)
        top = self._pages.take()
        made = DomainTables(number if domain.id is None else domain.id, stage, levels, top)
        made.places[levels, 0] = top
        return made

    # ---- page tables

    def map(self, name: str, pages: PagesArgs) -> None:
        """Write the entries of pages, and of the tables above where there are none yet."""
        domain = self.domains[name]
        level = PAGE_SIZES[pages.page]
        read, write = pages.access in ("read", "read_write"), pages.access in ("write", "read_write")
        for offset in range(0, pages.size, pages.page):
            table = self._table(domain, pages.iova + offset, level)
            entry = 0
            if read or write:
                entry = page_entry(domain.stage, level, pages.to + offset, read=read, write=write)
            data = _set(entry.to_bytes(8, "little"), pages.bits)
            self._qtest.write(table + self._index(domain, pages.iova + offset, level) * 8, data)

    def unmap(self, name: str, iova: int, size: int) -> None:
        """Clear the entries of the pages in a range, whatever their sizes are; tables stay."""
        domain = self.domains[name]
        end = iova + size
        while iova < end:
            level, at = self._leaf(domain, iova)
            self._qtest.write64(at, 0)
            iova += page_size(level)

    def entry(self, name: str, iova: int, level: int) -> int:
        """Address of the entry of a level on the way to an IOVA; the tables above are made where they are missing."""
        domain = self.domains[name]
        return self._table(domain, iova, level) + self._index(domain, iova, level) * 8

    def change_entry(
        self,
        name: str,
        iova: int,
        level: int,
        *,
        clear: bool,
        table: int | None,
        access: str | None,
        bits: Iterable[int],
    ) -> None:
        """Write one entry anew: cleared, with another address, other rights, further bits."""
        stage = self.domains[name].stage
        at = self.entry(name, iova, level)
        word = 0 if clear else self._qtest.read64(at)
        if table is not None:
            word = word & ~_ADDRESS | table
            word = word if word & stage.present else word | 0b111
        if access is not None:
            word &= ~(stage.read | stage.write)
            word |= stage.read * ("read" in access) | stage.write * ("write" in access)
        self._qtest.write(at, _set(word.to_bytes(8, "little"), bits))

    @staticmethod
    def _index(domain: DomainTables, iova: int, level: int) -> int:
        return iova >> _PAGE_SHIFT + _STRIDE * (level - 1) & (1 << _STRIDE) - 1

    def _table(self, domain: DomainTables, iova: int, level: int) -> int:
        """The table of a level that covers an IOVA; made, with those above it, where it is missing."""
        if level > domain.levels:
            raise ConfigurationError(f"the domain has {domain.levels} levels, not {level}")
        covers = page_size(level + 1)
        place = (level, 0 if level == domain.levels else iova // covers * covers)
        if place not in domain.places:
            above = self._table(domain, iova, level + 1)
            domain.places[place] = self._pages.take()
            self._qtest.write64(above + self._index(domain, iova, level + 1) * 8, table_entry(domain.places[place]))
        return domain.places[place]

    def _leaf(self, domain: DomainTables, iova: int) -> tuple[int, int]:
        """Level and address of the entry that maps an IOVA, or would."""
        for level in range(1, domain.levels + 1):
            covers = page_size(level + 1)
            table = domain.places.get((level, 0 if level == domain.levels else iova // covers * covers))
            if table is not None:
                return level, table + self._index(domain, iova, level) * 8
        raise AssertionError("a domain has its topmost table")

    # ---- root, context, PASID

    def write_root(self, name: str, root: RootFields) -> None:
        """Write the root entry of a device's bus."""
        bus = self._devices[name].bus
        lower, upper = (self._context_table(bus, upper) for upper in (False, self._scalable))
        entry = RootEntry(root.table if root.table is not None else lower, upper if self._scalable else None).encode()
        if not root.present:
            entry = (int.from_bytes(entry, "little") & ~(1 | 1 << 64)).to_bytes(16, "little")
        self._qtest.write(self.root + bus * RootEntry.SIZE, _set(entry, root.bits))

    def _context_table(self, bus: int, upper: bool) -> int:
        if (bus, upper) not in self._contexts:
            self._contexts[bus, upper] = self._pages.take()
        return self._contexts[bus, upper]

    def context(self, name: str, fields: ContextFields) -> None:
        """Write a device's context entry; its bus's root entry becomes present when there was no context table yet."""
        device = self._devices[name]
        bus, place = device.requester >> 8, device.requester & 0xFF
        first_of_bus = not any(one == bus for one, _ in self._contexts)
        table = self._context_table(bus, self._scalable and place >= _HALF)
        if self._scalable:
            entry, at = self._scalable_context(device, fields), table + place % _HALF * ScalableContextEntry.SIZE
        else:
            entry, at = self._legacy_context(fields), table + place * ContextEntry.SIZE
        self._qtest.write(at, _set(entry, (bit for bit in fields.bits if bit < 8 * len(entry))))
        if first_of_bus:
            self.write_root(name, RootFields())

    def _legacy_context(self, fields: ContextFields) -> bytes:
        domain = self.domains[fields.domain] if fields.domain else None
        levels = domain.levels if domain else 3 if self._spec.aw_bits == 39 else 4
        return ContextEntry(
            present=fields.present,
            type=_TYPES[fields.type],
            table=fields.table if fields.table is not None else domain.top if domain else 0,
            width=width_of(levels) if fields.width is None else fields.width,
            domain=domain.id if domain else 0,
            no_faults=fields.no_faults,
        ).encode()

    def _scalable_context(self, device: BareDeviceSpec, fields: ContextFields) -> bytes:
        if device.requester not in self._directories:
            self._directories[device.requester] = self._pages.take(), self._pages.take()
        directory, table = self._directories[device.requester]
        self._qtest.write(table, self._pasid_entry(fields))
        wanted = fields.directory
        entry = PasidDirectoryEntry(wanted.table if wanted.table is not None else table).encode()
        if not wanted.present:
            entry = (int.from_bytes(entry, "little") & ~1).to_bytes(8, "little")
        self._qtest.write(directory, _set(entry, wanted.bits))
        return ScalableContextEntry(
            present=fields.present,
            directory=fields.table if fields.table is not None else directory,
            no_faults=fields.no_faults,
        ).encode()

    def _pasid_entry(self, fields: ContextFields) -> bytes:
        domain = self.domains[fields.domain] if fields.domain else None
        pasid = fields.pasid
        stage_type = PasidType.PASS_THROUGH
        if domain is not None:
            stage_type = PasidType.FIRST if domain.stage is FIRST else PasidType.SECOND
        top = pasid.table if pasid.table is not None else domain.top if domain else 0
        first = domain is not None and domain.stage is FIRST
        levels = 4 if domain is None or first else domain.levels
        entry = PasidTableEntry(
            present=pasid.present,
            type=stage_type if pasid.type is None else pasid.type,
            second=0 if first else top,
            width=width_of(levels) if pasid.width is None else pasid.width,
            domain=domain.id if domain else 0,
            first=top if first else 0,
            first_width=domain.levels - 4 if first and domain is not None else 0,
            no_faults=pasid.no_faults,
        ).encode()
        return _set(entry, pasid.bits)

    # ---- interrupt remapping

    def irte(self, index: int, fields: IrteFields) -> None:
        """Write an entry of the interrupt-remapping table."""
        source = self._devices[fields.source] if fields.source else None
        entry = InterruptEntry(
            present=fields.present,
            no_faults=fields.no_faults,
            vector=fields.vector,
            source_id=source.requester if source else 0,
            validation=Validation.REQUESTER if source else Validation.NONE,
        ).encode()
        self._qtest.write(self.interrupts + index * InterruptEntry.SIZE, _set(entry, fields.bits))
