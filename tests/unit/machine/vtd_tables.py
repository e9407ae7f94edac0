"""A remapping unit's memory for tests: tables written entry by entry, and read as the walk reads them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from harness.machine.vtd import (
    BASE,
    SECOND,
    ContextEntry,
    PasidDirectoryEntry,
    PasidTableEntry,
    Registers,
    RootEntry,
    RootTableAddress,
    ScalableContextEntry,
    Stage,
    TableMode,
    page_entry,
    page_size,
    table_entry,
)

PAGE = 4096


@dataclass
class Memory:
    """Pages that are there once something is written to them; counts what is read."""

    pages: dict[int, bytearray] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    _next: itertools.count = field(default_factory=lambda: itertools.count(0x100000, PAGE))  # type: ignore[type-arg]

    def new(self) -> int:
        address = next(self._next)
        self.pages[address] = bytearray(PAGE)
        return address

    def write(self, address: int, data: bytes) -> None:
        at = address % PAGE
        self.pages.setdefault(address - at, bytearray(PAGE))[at : at + len(data)] = data

    def __call__(self, address: int, size: int) -> bytes:
        at = address % PAGE
        assert at + size <= PAGE
        self.reads.append((address, size))
        return bytes(self.pages[address - at][at : at + size])


class Unit:
    """A remapping unit with tables in a :class:`Memory`."""

    def __init__(self, mode: TableMode = TableMode.LEGACY, *, enabled: bool = True) -> None:
        self.memory = Memory()
        self.root = self.memory.new()
        self.mode = mode
        registers = Registers(0xD2008C222F0686, 0xF00F4A, enabled, RootTableAddress(self.root, mode))
        self.memory.write(BASE, registers.encode())

    def context(self, source_id: int, entry: ContextEntry) -> None:
        table = self.memory.new()
        self.memory.write(self.root + (source_id >> 8) * 16, RootEntry(lower=table).encode())
        self.memory.write(table + (source_id & 0xFF) * 16, entry.encode())

    def pasid(self, source_id: int, entry: PasidTableEntry, rid_pasid: int = 0) -> None:
        context, directory, table = (self.memory.new() for _ in range(3))
        devfn = source_id & 0xFF
        upper = devfn >= 128
        root = RootEntry(upper=context) if upper else RootEntry(lower=context)
        self.memory.write(self.root + (source_id >> 8) * 16, root.encode())
        scalable = ScalableContextEntry(directory=directory, rid_pasid=rid_pasid)
        self.memory.write(context + devfn % 128 * 32, scalable.encode())
        self.memory.write(directory + (rid_pasid >> 6) * 8, PasidDirectoryEntry(table).encode())
        self.memory.write(table + (rid_pasid & 63) * 64, entry.encode())

    def map(
        self,
        table: int,
        levels: int,
        iova: int,
        physical: int,
        level: int = 1,
        stage: Stage = SECOND,
        *,
        read: bool = True,
        write: bool = True,
    ) -> None:
        """Write one page's entry, and those of the tables on the way to it."""
        for upper in range(levels, level, -1):
            place = table + iova // page_size(upper) % 512 * 8
            entry = int.from_bytes(self.memory(place, 8), "little")
            if not entry:
                entry = table_entry(self.memory.new())
                self.memory.write(place, entry.to_bytes(8, "little"))
            table = entry & ~0xFFF
        leaf = page_entry(stage, level, physical, read=read, write=write)
        self.memory.write(table + iova // page_size(level) % 512 * 8, leaf.to_bytes(8, "little"))
