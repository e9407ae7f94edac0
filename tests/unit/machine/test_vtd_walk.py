"""The walk from a requester to its pages, on tables written by the encoders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vtd_tables import PAGE, Unit

from harness.machine.vtd import (
    BASE,
    FIRST,
    SECOND,
    ContextEntry,
    PageTables,
    PasidTableEntry,
    PasidType,
    RootEntry,
    Run,
    TableMode,
    TranslationType,
    Way,
    find_requester,
    page_size,
    width_of,
)
from harness.machine.vtd.paging import Stage

VF = 0x020A  # 02:01.2
MIB2, GIB = 2 << 20, 1 << 30


def legacy(levels: int = 4) -> tuple[Unit, int]:
    unit = Unit()
    table = unit.memory.new()
    unit.context(VF, ContextEntry(table=table, width=width_of(levels), domain=7))
    return unit, table


def runs(unit: Unit, first: int, size: int, source_id: int = VF) -> list[Run]:
    found = find_requester(unit.memory, source_id)
    assert found.way is Way.TRANSLATED
    assert found.tables is not None
    return list(found.tables.runs(unit.memory, first, size))


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_legacy_mode(levels: int):
    unit, table = legacy(levels)
    last = (1 << 12 + 9 * levels) - PAGE
    unit.map(table, levels, 0x200000, 0x7000)
    unit.map(table, levels, last, 0x9000)
    found = find_requester(unit.memory, VF)
    assert (found.way, found.mode) == (Way.TRANSLATED, TableMode.LEGACY)
    assert found.tables == PageTables(SECOND, levels, table, 7)
    assert runs(unit, 0x200000, PAGE) == [Run(0x200000, 0x7000, PAGE, PAGE, True, True)]
    assert runs(unit, 0x201000, GIB) == []
    # Beyond the width there is nothing, and nothing is folded back.
    assert runs(unit, last, 4 * PAGE) == [Run(last, 0x9000, PAGE, PAGE, True, True)]
    assert runs(unit, (1 << 12 + 9 * levels) + 0x200000, PAGE) == []


def test_other_requesters_have_nothing():
    unit, table = legacy()
    unit.map(table, 4, 0, 0x7000)
    assert find_requester(unit.memory, VF + 1).way is Way.NO_CONTEXT
    assert find_requester(unit.memory, VF + 0x100).way is Way.NO_ROOT


@pytest.mark.parametrize(
    ("context", "way"),
    [
        (ContextEntry(type=TranslationType.PASS_THROUGH), Way.PASS_THROUGH),
        (ContextEntry(type=TranslationType.RESERVED), Way.RESERVED),
        (ContextEntry(present=False), Way.NO_CONTEXT),
        *((ContextEntry(width=width), Way.RESERVED) for width in (0, 4, 5, 6, 7)),
    ],
)
def test_legacy_contexts_without_page_tables(context: ContextEntry, way: Way):
    unit = Unit()
    unit.context(VF, context)
    found = find_requester(unit.memory, VF)
    assert (found.way, found.tables) == (way, None)
    assert way.untranslated is (way is Way.PASS_THROUGH)


def test_translation_off_and_modes_without_tables():
    off = Unit(enabled=False)
    assert find_requester(off.memory, VF).way is Way.DISABLED
    assert Way.DISABLED.untranslated
    assert off.memory.reads == [(BASE, 0x28)]  # what RTADDR has does not matter then
    assert find_requester(Unit(TableMode.ABORT).memory, VF).way is Way.ABORTED
    assert find_requester(Unit(TableMode.RESERVED).memory, VF).way is Way.RESERVED


@pytest.mark.parametrize("source_id", [0x0208, 0x02F8])  # either half of a bus
@pytest.mark.parametrize("rid_pasid", [0, 70])
@pytest.mark.parametrize(
    ("stage", "levels", "entry"),
    [
        (SECOND, 3, {"type": PasidType.SECOND, "width": 1}),
        (SECOND, 4, {"type": PasidType.SECOND, "width": 2}),
        (SECOND, 5, {"type": PasidType.SECOND, "width": 3}),
        (FIRST, 4, {"type": PasidType.FIRST, "first_width": 0}),
        (FIRST, 5, {"type": PasidType.FIRST, "first_width": 1}),
    ],
)
def test_scalable_mode(source_id: int, rid_pasid: int, stage: Stage, levels: int, entry: dict[str, int]):
    unit = Unit(TableMode.SCALABLE)
    table = unit.memory.new()
    place = "first" if stage is FIRST else "second"
    unit.pasid(source_id, PasidTableEntry(domain=9, **{place: table}, **entry), rid_pasid)
    unit.map(table, levels, 0x200000, 0x7000, stage=stage)
    unit.map(table, levels, MIB2 * 2, MIB2, 2, stage, write=False)
    found = find_requester(unit.memory, source_id)
    assert (found.way, found.mode) == (Way.TRANSLATED, TableMode.SCALABLE)
    assert found.tables == PageTables(stage, levels, table, 9)
    assert runs(unit, 0, GIB, source_id) == [
        Run(0x200000, 0x7000, PAGE, PAGE, True, True),
        Run(MIB2 * 2, MIB2, MIB2, MIB2, True, False),
    ]


@pytest.mark.parametrize(
    ("entry", "way"),
    [
        (PasidTableEntry(present=False), Way.NO_PASID),
        (PasidTableEntry(type=PasidType.PASS_THROUGH), Way.PASS_THROUGH),
        (PasidTableEntry(type=PasidType.NESTED), Way.NESTED),
        (PasidTableEntry(type=0), Way.RESERVED),
        (PasidTableEntry(type=PasidType.SECOND, width=4), Way.RESERVED),
        (PasidTableEntry(type=PasidType.FIRST, first_width=2), Way.RESERVED),
    ],
)
def test_scalable_entries_without_page_tables(entry: PasidTableEntry, way: Way):
    unit = Unit(TableMode.SCALABLE)
    unit.pasid(VF, entry)
    assert find_requester(unit.memory, VF).way is way
    assert find_requester(unit.memory, VF + 1).way is Way.NO_CONTEXT
    assert find_requester(unit.memory, 0x0280).way is Way.NO_ROOT


def test_scalable_mode_without_a_directory_entry():
    unit = Unit(TableMode.SCALABLE)
    unit.pasid(VF, PasidTableEntry(), rid_pasid=64)
    context = RootEntry.decode(unit.memory(unit.root + 2 * 16, 16)).lower
    assert context is not None
    unit.memory.write(context + (VF & 0xFF) * 32 + 8, (128).to_bytes(8, "little"))
    assert find_requester(unit.memory, VF).way is Way.NO_DIRECTORY
    unit.memory.write(context + (VF & 0xFF) * 32 + 8, (1 << 13).to_bytes(8, "little"))
    assert find_requester(unit.memory, VF).way is Way.RESERVED


def test_large_pages_are_one_entry_and_runs_join_pages_of_one_size():
    unit, table = legacy()
    unit.map(table, 4, MIB2, MIB2 * 5, 2)
    unit.map(table, 4, MIB2 * 2, MIB2 * 6, 2)
    unit.map(table, 4, MIB2 * 3, MIB2 * 7)  # goes on, by a small page
    unit.map(table, 4, GIB, GIB * 4, 3)
    assert runs(unit, 0, 4 * GIB) == [
        Run(MIB2, MIB2 * 5, MIB2 * 2, MIB2, True, True),
        Run(MIB2 * 3, MIB2 * 7, PAGE, PAGE, True, True),
        Run(GIB, GIB * 4, GIB, GIB, True, True),
    ]
    # A page that lies in the range in part is given whole.
    assert runs(unit, GIB + 5 * PAGE, PAGE) == [Run(GIB, GIB * 4, GIB, GIB, True, True)]


def test_permissions_are_what_every_entry_gives():
    unit, table = legacy(3)
    for index, (read, write) in enumerate([(True, False), (False, True), (True, True), (False, False)]):
        unit.map(table, 3, index * PAGE, index * PAGE, read=read, write=write)
    seen = [(run.read, run.write) for run in runs(unit, 0, GIB)]
    assert seen == [(True, False), (False, True), (True, True)]
    # The topmost entry gives reading only: then writing is not to be had below, and what could only be written is not.
    place = unit.memory.pages[table]
    place[0:8] = (int.from_bytes(place[0:8], "little") & ~2).to_bytes(8, "little")
    assert [(run.iova, run.read, run.write) for run in runs(unit, 0, GIB)] == [
        (0, True, False),
        (2 * PAGE, True, False),
    ]


def test_first_stage_addresses_are_canonical_and_pages_for_users():
    unit = Unit(TableMode.SCALABLE)
    table = unit.memory.new()
    unit.pasid(VF, PasidTableEntry(type=PasidType.FIRST, first=table))
    high = (1 << 64) - (1 << 47)
    unit.map(table, 4, high & (1 << 48) - 1, 0x7000, stage=FIRST)
    unit.map(table, 4, 0x5000, 0x8000, stage=FIRST)
    assert runs(unit, high, PAGE) == [Run(high, 0x7000, PAGE, PAGE, True, True)]
    assert runs(unit, high & (1 << 48) - 1, PAGE) == []
    assert runs(unit, 0, 1 << 64) == [
        Run(0x5000, 0x8000, PAGE, PAGE, True, True),
        Run(high, 0x7000, PAGE, PAGE, True, True),
    ]
    supervisor, tables = 0x8003, unit.memory
    leaf = next(address for address, page in tables.pages.items() if page[40:48] == (0x8007).to_bytes(8, "little"))
    tables.write(leaf + 40, supervisor.to_bytes(8, "little"))
    assert runs(unit, 0x5000, PAGE) == []


def test_only_tables_of_the_range_are_read():
    unit, table = legacy()
    for place in range(64):
        unit.map(table, 4, place * MIB2, place * PAGE)
    unit.memory.reads.clear()
    assert len(runs(unit, 3 * MIB2, MIB2)) == 1
    assert len(unit.memory.reads) == 3 + 4  # registers, root, context; one table of each level


def test_a_gigabyte_of_small_pages():
    unit, table = legacy()
    for place in range(512):
        unit.map(table, 4, place * MIB2, 0)
    leaves = [address for address, page in unit.memory.pages.items() if page[0:8] == (0x3).to_bytes(8, "little")]
    assert len(leaves) == 512
    for leaf, address in enumerate(leaves):
        # Backwards: no two pages can be joined.
        frames = (0x40000 - leaf * 512 - place for place in range(512))
        unit.memory.pages[address][:] = b"".join((frame << 12 | 3).to_bytes(8, "little") for frame in frames)
    assert len(runs(unit, 0, GIB)) == 1 << 18


@st.composite
def mappings(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, bool, bool]]]:
    """Levels, and pages of any level that do not overlap: IOVA, physical address, level, read, write."""
    levels = draw(st.integers(3, 5))
    taken: list[tuple[int, int]] = []
    pages = []
    for _ in range(draw(st.integers(0, 12))):
        level = draw(st.integers(1, 3))
        size = page_size(level)
        iova = draw(st.integers(0, 8 * GIB // size - 1)) * size
        if any(iova < end and start < iova + size for start, end in taken):
            continue
        taken.append((iova, iova + size))
        physical = draw(st.integers(0, (1 << 46) // size - 1)) * size
        read, write = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
        pages.append((iova, physical, level, read, write))
    return levels, pages


@given(mappings(), st.integers(0, 8 * GIB - 1), st.integers(1, 8 * GIB))
def test_what_is_mapped_is_found_and_nothing_else(
    mapped: tuple[int, list[tuple[int, int, int, bool, bool]]], first: int, size: int
):
    levels, pages = mapped
    unit, table = legacy(levels)
    for iova, physical, level, read, write in pages:
        unit.map(table, levels, iova, physical, level, read=read, write=write)
    found = [
        (run.iova + at, run.physical + at, run.page, run.read, run.write)
        for run in runs(unit, first, size)
        for at in range(0, run.size, run.page)
    ]
    assert found == [
        (iova, physical, page_size(level), read, write)
        for iova, physical, level, read, write in sorted(pages)
        if iova < first + size and first < iova + page_size(level)
    ]
