from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usdm.errors import NoIovaSpace
from usdm.iova import IovaSpace

MIB = 1 << 20
SLAB = 2 * MIB


def everything(space: IovaSpace, size: int = SLAB) -> list[int]:
    found = []
    while True:
        try:
            found.append(space.allocate(size))
        except NoIovaSpace:
            return found


def test_the_first_iova_is_2_mib_and_zero_is_never_handed_out() -> None:
    assert everything(IovaSpace([(0, 5 * SLAB - 1)])) == [SLAB, 2 * SLAB, 3 * SLAB, 4 * SLAB]


def test_d11_d12_nothing_in_a_hole_nor_beyond_the_last_range() -> None:
    ranges = ((0, 0xFEDFFFFF), (0xFEF00000, 2**36 - 1))
    found = everything(IovaSpace(ranges))
    assert len(found) == 2**36 // SLAB - 2  # without unit 0 and the unit of the MSI window
    assert 0xFEE00000 not in found
    assert max(found) == 2**36 - SLAB


def test_a_mapping_never_straddles_the_window() -> None:
    space = IovaSpace(((0, 0xFEDFFFFF), (0xFEF00000, 2**36 - 1)))
    for iova in everything(space, 2 << 30):
        assert not (iova < 0xFEF00000 and iova + (2 << 30) > 0xFEE00000)
        assert iova + (2 << 30) <= 2**36


def test_only_whole_units_inside_a_range_are_used() -> None:
    assert everything(IovaSpace([(3 * SLAB + 4096, 6 * SLAB - 4096)])) == [4 * SLAB]
    assert everything(IovaSpace([(3 * SLAB + 4096, 4 * SLAB - 1)])) == []
    assert everything(IovaSpace([])) == []


def test_overlapping_ranges_are_used_once() -> None:
    assert everything(IovaSpace([(SLAB, 4 * SLAB - 1), (2 * SLAB, 5 * SLAB - 1)])) == [n * SLAB for n in (1, 2, 3, 4)]


def test_the_highest_addresses() -> None:
    assert everything(IovaSpace([(2**64 - 2 * SLAB, 2**64 - 1)])) == [2**64 - 2 * SLAB, 2**64 - SLAB]


def test_a_released_iova_comes_back_only_after_all_others() -> None:
    space = IovaSpace([(0, 5 * SLAB - 1)])
    taken = []
    for _ in range(8):
        iova = space.allocate(4096)
        space.release(iova, 4096)
        taken.append(iova // SLAB)
    assert taken == [1, 2, 3, 4, 1, 2, 3, 4]


def test_fragmentation_is_told() -> None:
    space = IovaSpace([(0, 9 * SLAB - 1)])
    taken = everything(space)
    for iova in taken[::2]:
        space.release(iova, SLAB)
    with pytest.raises(NoIovaSpace, match="free 0x800000, largest gap 0x200000"):
        space.allocate(2 * SLAB)


def test_alignment_of_4_mib() -> None:
    space = IovaSpace([(0, 8 * SLAB - 1)])
    assert space.allocate(1, 4 * MIB) == 4 * MIB
    assert space.allocate(SLAB) == 3 * SLAB
    assert space.allocate(SLAB, 2 * SLAB) == 4 * SLAB
    assert space.allocate(SLAB, 2 * SLAB) == 6 * SLAB
    with pytest.raises(NoIovaSpace):
        space.allocate(SLAB, 2 * SLAB)
    assert sorted(everything(space)) == [SLAB, 5 * SLAB, 7 * SLAB]


def test_reserve_takes_what_is_free_only() -> None:
    space = IovaSpace([(0, 6 * SLAB - 1)])
    assert space.reserve(2 * SLAB, 2 * SLAB)
    assert not space.reserve(3 * SLAB, SLAB)
    assert not space.reserve(0, SLAB)
    assert not space.reserve(5 * SLAB, 2 * SLAB)
    assert everything(space) == [SLAB, 4 * SLAB, 5 * SLAB]


@pytest.mark.parametrize("seed", range(12))
def test_a_fragmented_space_against_a_bitmap(seed: int) -> None:
    """Thousands of steps in more units than one list holds, mostly single units in gaps of one unit."""
    draw = random.Random(seed)
    units = draw.choice((600, 1100, 2600))
    space = IovaSpace([(0, units * SLAB - 1)])
    used = [False] * units
    used[0] = True
    live: dict[int, int] = {}
    cursor = 0

    def allocate(length: int, step: int) -> None:
        nonlocal cursor
        order = [*range(cursor, units), *range(cursor)]
        fitting = (n for n in order if n % step == 0 and n + length <= units and not any(used[n : n + length]))
        expected = next(fitting, None)
        if expected is None:
            with pytest.raises(NoIovaSpace):
                space.allocate(length * SLAB, step * SLAB)
            return
        assert space.allocate(length * SLAB, step * SLAB) == expected * SLAB
        used[expected : expected + length] = [True] * length
        live[expected] = length
        cursor = expected + length

    def release(start: int) -> None:
        length = live.pop(start)
        used[start : start + length] = [False] * length
        space.release(start * SLAB, length * SLAB)

    for _ in range(units - 1):
        allocate(1, 1)
    for start in list(live)[:: draw.choice((2, 3))]:
        release(start)
    for _ in range(1500):
        kind = draw.random()
        if kind < 0.55:
            allocate(1, 1)
            if live and draw.random() < 0.7:
                release(max(live, key=lambda start: (start < cursor, start)))
        elif kind < 0.6:
            allocate(draw.randint(1, 4), draw.choice((1, 2)))
        elif live:
            release(draw.choice(list(live)))
            allocate(1, 1)
            if draw.random() < 0.1:
                space.put_back()
    assert space.free == used.count(False) * SLAB


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 2]), st.integers(0, 63)), max_size=60))
def test_against_a_bitmap(steps: list[tuple[int, int, int]]) -> None:
    units = 24
    space = IovaSpace([(0, 10 * SLAB - 1), (11 * SLAB, units * SLAB - 1)])
    used = [n in (0, 10) for n in range(units)]
    live: list[tuple[int, int]] = []
    cursor = 0
    for length, step, which in steps:
        if length == 0:
            if live:
                start, count = live.pop(which % len(live))
                used[start : start + count] = [False] * count
                space.release(start * SLAB, count * SLAB)
            continue
        fitting = [n for n in range(0, units - length + 1, step) if not any(used[n : n + length])]
        expected = min(fitting, key=lambda n, low=cursor: (n < low, n), default=None)
        if expected is None:
            with pytest.raises(NoIovaSpace):
                space.allocate(length * SLAB, step * SLAB)
            continue
        assert space.allocate(length * SLAB, step * SLAB) == expected * SLAB
        used[expected : expected + length] = [True] * length
        live.append((expected, length))
        cursor = expected + length
