"""The encoders of VT-d's structures: what is written is read again, reserved bits are 0, a walk finds the pages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.machine.vtd import (
    FIRST,
    SECOND,
    ContextEntry,
    PageTables,
    PasidDirectoryEntry,
    PasidTableEntry,
    RootEntry,
    ScalableContextEntry,
    Stage,
    TranslationType,
    page_entry,
    page_size,
    table_entry,
)
from harness.machine.vtd.faults import FaultRecording
from harness.machine.vtd.interrupts import (
    WINDOW,
    InterruptEntry,
    Validation,
    message_index,
    remappable_message,
    table_address,
)
from harness.machine.vtd.invalidation import Scope, context_cache, context_command, iotlb, iotlb_command, wait

pages = st.integers(0, (1 << 40) - 1).map(lambda number: number << 12)
maybe = st.none() | pages
words16 = st.integers(0, (1 << 16) - 1)
bits3 = st.integers(0, 7)

roots = st.builds(RootEntry, lower=maybe, upper=maybe)
contexts = st.builds(
    ContextEntry,
    present=st.booleans(),
    type=st.sampled_from(TranslationType),
    table=pages,
    width=bits3,
    domain=words16,
    no_faults=st.booleans(),
)
scalables = st.builds(
    ScalableContextEntry,
    present=st.booleans(),
    directory=pages,
    directory_size=bits3,
    rid_pasid=st.integers(0, (1 << 20) - 1),
    no_faults=st.booleans(),
)
directories = st.builds(PasidDirectoryEntry, table=maybe)
pasids = st.builds(
    PasidTableEntry,
    present=st.booleans(),
    type=bits3,
    second=pages,
    width=bits3,
    domain=words16,
    first=pages,
    first_width=st.integers(0, 3),
    no_faults=st.booleans(),
)
interrupts = st.builds(
    InterruptEntry,
    present=st.booleans(),
    no_faults=st.booleans(),
    vector=st.integers(0, 255),
    destination=st.integers(0, 255),
    source_id=words16,
    validation=st.sampled_from(Validation),
)
records = st.builds(
    FaultRecording,
    fault=st.booleans(),
    read=st.booleans(),
    reason=st.integers(0, 255),
    source_id=words16,
    info=st.integers(0, (1 << 52) - 1).map(lambda number: number << 12),
    pasid=st.none() | st.integers(0, (1 << 20) - 1),
)
# The bits that the specification reserves, or that mean something nothing here sets.
RESERVED = {
    RootEntry: [(1, 11), (52, 63), (65, 75), (116, 127)],
    ContextEntry: [(4, 11), (52, 63), (67, 71), (88, 127)],
    ScalableContextEntry: [(2, 8), (52, 63), (84, 255)],
    PasidDirectoryEntry: [(1, 11), (52, 63)],
    PasidTableEntry: [(5, 5), (9, 11), (52, 63), (80, 127), (132, 139), (180, 511)],
    InterruptEntry: [(2, 15), (24, 39), (48, 63), (80, 81), (84, 127)],
    FaultRecording: [(0, 11), (80, 94)],
}


@given(roots | contexts | scalables | directories | pasids | interrupts | records)
def test_what_is_written_is_read_again_and_reserved_bits_are_0(entry: object) -> None:
    kind = type(entry)
    data = entry.encode()  # type: ignore[attr-defined]
    assert len(data) == kind.SIZE  # type: ignore[attr-defined]
    assert kind.decode(data) == entry  # type: ignore[attr-defined]
    word = int.from_bytes(data, "little")
    for low, high in RESERVED[kind]:  # type: ignore[index]
        assert word >> low & (1 << high - low + 1) - 1 == 0, (low, high)


@given(contexts, contexts)
def test_entries_that_differ_are_written_differently(one: ContextEntry, other: ContextEntry) -> None:
    assert (one.encode() == other.encode()) == (one == other)


@pytest.mark.parametrize("bad", [0x1001, 1 << 52, -0x1000])
def test_an_address_that_is_none_is_refused(bad: int) -> None:
    for entry in (RootEntry(bad), ContextEntry(table=bad), PasidDirectoryEntry(bad), PasidTableEntry(second=bad)):
        with pytest.raises(ValueError, match="not the address of a page"):
            entry.encode()


def test_a_value_that_does_not_fit_is_refused() -> None:
    for entry in (ContextEntry(domain=1 << 16), InterruptEntry(vector=256), FaultRecording(reason=256)):
        with pytest.raises(ValueError, match="does not fit"):
            entry.encode()
    with pytest.raises(ValueError, match="not the address of a page"):
        FaultRecording(info=0x123).encode()


@given(words16)
def test_a_message_names_its_index(index: int) -> None:
    address = remappable_message(index)
    assert WINDOW <= address < WINDOW + (1 << 20)
    assert message_index(address) == index
    assert message_index(address & ~(1 << 4)) is None


@given(pages, st.integers(1, 16))
def test_the_table_of_interrupts_has_a_power_of_two_of_entries(table: int, order: int) -> None:
    word = table_address(table, 1 << order)
    assert (word & ~0xFFF, 2 << (word & 0xF)) == (table, 1 << order)
    with pytest.raises(ValueError, match="power of two"):
        table_address(table, (1 << order) + 1 if order > 1 else 1)


@given(st.sampled_from(Scope), words16, words16)
def test_descriptors_and_registers_of_invalidation_say_the_same(scope: Scope, domain: int, source: int) -> None:
    low, high = struct.unpack("<2Q", context_cache(scope, domain, source))
    assert (low & 0xF, low >> 4 & 3, low >> 16 & 0xFFFF, low >> 32 & 0xFFFF, high) == (1, scope, domain, source, 0)
    command = context_command(scope, domain, source)
    assert (command >> 63, command >> 61 & 3, command >> 16 & 0xFFFF, command & 0xFFFF) == (1, scope, source, domain)
    low, high = struct.unpack("<2Q", iotlb(scope, domain, 0x40000000, 3))
    assert (low & 0xF, low >> 4 & 3, low >> 16 & 0xFFFF) == (2, scope, domain)
    assert high == (0x40000003 if scope is Scope.SELECTIVE else 0)
    assert iotlb_command(scope, domain) >> 60 & 3 == scope


def test_an_invalidation_of_pages_is_aligned() -> None:
    with pytest.raises(ValueError, match="not the address of 2 pages"):
        iotlb(Scope.SELECTIVE, 1, 0x1000, 1)
    with pytest.raises(ValueError, match="not the address of 32 bits"):
        wait(0x1002, 1)


class Memory:
    """Tables by their address."""

    def __init__(self) -> None:
        self.tables: dict[int, bytearray] = {}

    def new(self) -> int:
        address = 0x1000 * (len(self.tables) + 1)
        self.tables[address] = bytearray(0x1000)
        return address

    def put(self, table: int, place: int, entry: int) -> None:
        self.tables[table][place * 8 : place * 8 + 8] = entry.to_bytes(8, "little")

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.tables[address][:size])


@given(
    stage=st.sampled_from([FIRST, SECOND]),
    levels=st.sampled_from([3, 4, 5]),
    level=st.integers(1, 3),
    number=st.integers(0, (1 << 45) - 1),
    physical=st.integers(0, (1 << 22) - 1),
    rights=st.sampled_from([(True, False), (False, True), (True, True)]),
)
def test_a_walk_finds_the_page_that_was_written(
    stage: Stage, levels: int, level: int, number: int, physical: int, rights: tuple[bool, bool]
) -> None:
    read, write = rights
    size, width = page_size(level), 12 + 9 * levels
    iova = number * size % (1 << width - 1)  # the lower half, which is canonical in either stage
    to = physical * size % (1 << 52)
    if stage is FIRST and write and not read:
        with pytest.raises(ValueError, match="only be written"):
            page_entry(stage, level, to, read=read, write=write)
        return
    memory = Memory()
    table = top = memory.new()
    for here in range(levels, level, -1):
        below = memory.new()
        memory.put(table, iova >> 12 + 9 * (here - 1) & 511, table_entry(below))
        table = below
    memory.put(table, iova >> 12 + 9 * (level - 1) & 511, page_entry(stage, level, to, read=read, write=write))
    (run,) = PageTables(stage, levels, top, 1).runs(memory.read, iova, size)
    assert (run.iova, run.physical, run.size, run.page, run.read, run.write) == (iova, to, size, size, read, write)
