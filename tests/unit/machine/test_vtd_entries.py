"""VT-d's structures: known bit patterns, and what is written is read again."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.machine.vtd import (
    FIRST,
    SECOND,
    ContextEntry,
    PasidDirectoryEntry,
    PasidTableEntry,
    PasidType,
    Registers,
    RootEntry,
    RootTableAddress,
    ScalableContextEntry,
    TableMode,
    TranslationType,
    page_entry,
    page_size,
    table_entry,
    width_of,
)

pages = st.integers(0, (1 << 40) - 1).map(lambda frame: frame << 12)
maybe_pages = st.none() | pages


def bits(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << count) - 1)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (RootEntry(lower=0x1234000), (0x1234001, 0)),
        (RootEntry(lower=0x1000, upper=0x2000), (0x1001, 0x2001)),
        (ContextEntry(table=0x5E1B000, width=2, domain=10), (0x5E1B001, 0xA02)),
        (ContextEntry(type=TranslationType.PASS_THROUGH, width=1, domain=0xFFFF), (0x9, 0xFFFF01)),
        (ContextEntry(present=False, no_faults=True), (0x2, 0x2)),
        (ScalableContextEntry(directory=0x7000, directory_size=7, rid_pasid=0xFFFFF), (0x7E01, 0xFFFFF, 0, 0)),
        (PasidDirectoryEntry(0x9000), (0x9001,)),
        (PasidDirectoryEntry(), (0,)),
        (PasidTableEntry(type=PasidType.SECOND, second=0x8000, width=2, domain=3), (0x8089, 3, *[0] * 6)),
        (
            PasidTableEntry(type=PasidType.FIRST, first=0x8000, first_width=1, width=0, domain=3),
            (0x41, 3, 0x8004, *[0] * 5),
        ),
    ],
)
def test_bits_are_where_the_specification_has_them(entry, words):
    data = struct.pack(f"<{len(words)}Q", *words)
    assert entry.encode() == data
    assert len(data) == entry.SIZE
    assert type(entry).decode(data) == entry


@given(st.builds(RootEntry, maybe_pages, maybe_pages))
def test_root_entries(entry: RootEntry):
    assert RootEntry.decode(entry.encode()) == entry


@given(
    st.builds(ContextEntry, st.booleans(), st.sampled_from(TranslationType), pages, bits(3), bits(16), st.booleans())
)
def test_context_entries(entry: ContextEntry):
    assert ContextEntry.decode(entry.encode()) == entry


@given(st.builds(ScalableContextEntry, st.booleans(), pages, bits(3), bits(20), st.booleans()))
def test_scalable_context_entries(entry: ScalableContextEntry):
    assert ScalableContextEntry.decode(entry.encode()) == entry


@given(st.builds(PasidDirectoryEntry, maybe_pages))
def test_pasid_directory_entries(entry: PasidDirectoryEntry):
    assert PasidDirectoryEntry.decode(entry.encode()) == entry


@given(st.builds(PasidTableEntry, st.booleans(), bits(3), pages, bits(3), bits(16), pages, bits(2), st.booleans()))
def test_pasid_table_entries(entry: PasidTableEntry):
    assert PasidTableEntry.decode(entry.encode()) == entry


@given(
    st.builds(
        Registers, bits(64), bits(64), st.booleans(), st.builds(RootTableAddress, pages, st.sampled_from(TableMode))
    )
)
def test_registers(registers: Registers):
    assert Registers.decode(registers.encode()) == registers


@given(st.binary(min_size=64, max_size=64))
def test_any_bytes_can_be_read(data: bytes):
    for kind in (RootEntry, ContextEntry, ScalableContextEntry, PasidDirectoryEntry, PasidTableEntry):
        kind.decode(data[: kind.SIZE])
    Registers.decode(data[:0x28])


def test_legacy_structures_of_a_guest():
    """Linux 6.12 on QEMU 11.1, device 02:00.0 in a VFIO container."""
    data = bytes.fromhex("100000000000000086062f228c00d2804a0ff0000000000000000000000000c700c0c90400000000")
    root = RootTableAddress(0x4C9C000, TableMode.LEGACY)
    assert Registers.decode(data) == Registers(0x80D2008C222F0686, 0xF00F4A, True, root)
    assert RootEntry.decode(bytes.fromhex("01c0e11f000000000000000000000000")) == RootEntry(0x1FE1C000)
    context = ContextEntry(table=0x1FDE8000, width=2, domain=10)
    assert ContextEntry.decode(bytes.fromhex("0180de1f00000000020a000000000000")) == context


@pytest.mark.parametrize(
    ("registers", "context", "directory", "pasid", "entry"),
    [
        (  # QEMU 10.0 with x-scalable-mode
            "100000000000000086062f228c00d2004a0ff0800048000000000000000000c700e4c90400000000",
            "01d4ca0400000000",
            "01402c0500000000",
            "89e0df1f000000000a00000000000000" + "00" * 48,
            PasidTableEntry(type=PasidType.SECOND, second=0x1FDFE000, width=2, domain=10),
        ),
        (  # QEMU 11.1 with scalable-mode and fsts
            "100000000000000086062f228c00d2814a0ff0000088000000000000000000c700e4c90400000000",
            "01c4ca0400000000",
            "01802b0500000000",
            "49000000000000000a000000000000000080df1f00000000" + "00" * 40,
            PasidTableEntry(type=PasidType.FIRST, first=0x1FDF8000, width=2, domain=10),
        ),
    ],
)
def test_scalable_structures_of_a_guest(
    registers: str, context: str, directory: str, pasid: str, entry: PasidTableEntry
):
    """Linux 6.12 with intel_iommu=on,sm_on."""
    root = Registers.decode(bytes.fromhex(registers)).root
    assert root == RootTableAddress(0x4C9E000, TableMode.SCALABLE)
    found = ScalableContextEntry.decode(bytes.fromhex(context) + bytes(24))
    assert (found.present, found.directory_size, found.pasids) == (True, 2, 1 << 15)
    assert PasidDirectoryEntry.decode(bytes.fromhex(directory)).table
    assert PasidTableEntry.decode(bytes.fromhex(pasid)) == entry


def test_registers_are_as_many_bytes():
    with pytest.raises(ValueError, match="40 bytes, not 3"):
        Registers.decode(b"abc")


@pytest.mark.parametrize("bad", [1, 0x800, 1 << 52, -4096])
def test_an_address_is_a_page_of_52_bits(bad: int):
    for write in (
        lambda: RootEntry(lower=bad).encode(),
        lambda: ContextEntry(table=bad).encode(),
        lambda: PasidTableEntry(first=bad).encode(),
        lambda: RootTableAddress(bad).encode(),
        lambda: table_entry(bad),
        lambda: page_entry(SECOND, 1, bad),
    ):
        with pytest.raises(ValueError, match="address"):
            write()


def test_values_that_do_not_fit_are_refused():
    for entry in (ContextEntry(width=8), ContextEntry(domain=1 << 16), PasidTableEntry(type=8)):
        with pytest.raises(ValueError, match="does not fit"):
            entry.encode()
    with pytest.raises(ValueError, match="3, 4 or 5 levels"):
        width_of(2)
    assert [width_of(levels) for levels in (3, 4, 5)] == [1, 2, 3]


def test_page_entries():
    assert page_entry(SECOND, 1, 0x5000) == 0x5003
    assert page_entry(SECOND, 1, 0x5000, write=False) == 0x5001
    assert page_entry(SECOND, 1, 0x5000, read=False) == 0x5002
    assert page_entry(SECOND, 2, 0x200000) == 0x200083
    assert page_entry(FIRST, 3, 0x40000000) == 0x40000087
    assert page_entry(FIRST, 1, 0x5000, write=False) == 0x5005
    assert [page_size(level) for level in (1, 2, 3)] == [4096, 2 << 20, 1 << 30]
    for level, address in ((2, 0x1000), (4, 0), (0, 0)):
        with pytest.raises(ValueError, match="no address of a page of level"):
            page_entry(SECOND, level, address)
    with pytest.raises(ValueError, match="only be written"):
        page_entry(FIRST, 1, 0, read=False)
