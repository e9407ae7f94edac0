"""IOVAs by granules: nothing is handed out twice, an address comes again late, and the space stays in bounds."""

from __future__ import annotations

import random

import pytest

from usdm.errors import NoIovaSpace
from usdm.granules import Granules
from usdm.iova import IovaSpace

PAGE, UNIT = 4096, 2 << 20
ALL = (1 << 64) - 1


def space(units: int) -> IovaSpace:
    """`units` whole units behind unit 0, which is never handed out."""
    return IovaSpace(((0, (units + 1) * UNIT - 1),))


@pytest.mark.parametrize("seed", range(4))
def test_against_a_bitmap(seed: int):
    random_ = random.Random(seed)
    iovas = space(12)
    granules = Granules(iovas)
    taken: dict[int, int] = {}
    used = 0  # a bit a granule
    refused = 0

    def bits(iova: int, size: int) -> int:
        """The granules that nobody else can have: of a large piece, whole units."""
        whole = -(-size // UNIT) * UNIT if size >= UNIT else size
        return ((1 << whole // PAGE) - 1) << iova // PAGE

    for _ in range(1500):
        if taken and random_.random() < 0.48:
            iova = random_.choice(list(taken))
            size = taken.pop(iova)
            used &= ~bits(iova, size)
            granules.release(iova, size)
        else:
            size = random_.choice((1, 1, 2, 3, 100, 500, 511, 512, 600, 1024)) * PAGE
            last = random_.choice((ALL, ALL, 5 * UNIT - 1, 3 * UNIT - 1, 4 * UNIT + 3 * PAGE - 1))
            try:
                iova = granules.allocate(size, last)
            except NoIovaSpace:
                refused += 1
                step = UNIT if size >= UNIT else PAGE
                assert not any(
                    used & bits(at, size) == 0
                    for at in range(UNIT, min(last + 1, 13 * UNIT) - len(bin(bits(0, size))[2:]) * PAGE + 1, step)
                    if size >= UNIT
                    or (at // UNIT == (at + size - 1) // UNIT and (at | (UNIT - 1) <= last or granules.holder(at, 1)))
                )
                continue
            assert iova >= UNIT
            assert iova + size - 1 <= min(last, 13 * UNIT - 1)
            assert not used & bits(iova, size)
            used |= bits(iova, size)
            taken[iova] = size
        assert granules.taken == sum(taken.values())
        assert iovas.free + granules.held == 12 * UNIT
        for iova, size in list(taken.items())[:3]:
            assert granules.holder(iova, size) is not None
    assert refused > 10
    for iova, size in taken.items():
        granules.release(iova, size)
    assert (granules.taken, granules.held, iovas.free) == (0, 0, 12 * UNIT)


def test_pages_share_units_and_follow_each_other():
    granules = Granules(space(8))
    found = [granules.allocate(PAGE, ALL) for _ in range(1024)]
    assert found == [UNIT + page * PAGE for page in range(1024)]
    assert granules.held == 2 * UNIT


def test_a_released_address_comes_again_as_late_as_possible():
    granules = Granules(space(3))
    kept = granules.allocate(PAGE, ALL)
    seen = set()
    for _ in range(511 + 512):
        iova = granules.allocate(PAGE, ALL)
        assert iova not in seen
        seen.add(iova)
        granules.release(iova, PAGE)
    granules.release(kept, PAGE)


def test_half_empty_units_are_used_again():
    """A long-lived process does not spread over the whole space: at most 128 MiB, or half, of what it holds is free."""
    granules = Granules(space(4096))
    kept = []
    for _ in range(300):  # of each unit one granule stays
        pieces = [granules.allocate(64 * PAGE, ALL) for _ in range(8)]
        kept += pieces[:1]
        for iova in pieces[1:]:
            granules.release(iova, 64 * PAGE)
    assert granules.held <= 2 * granules.taken + 66 * UNIT
    assert granules.held < 150 * UNIT


def test_two_masks_take_turns_without_a_new_unit_each_time():
    iovas = space(100)
    iovas.allocate(50 * UNIT)  # the cursor is beyond the small mask, whose part is given back
    iovas.release(UNIT, 50 * UNIT)
    granules = Granules(iovas)
    for _ in range(100):
        assert granules.allocate(PAGE, ALL) > 50 * UNIT
        assert granules.allocate(PAGE, 10 * UNIT - 1) < 10 * UNIT
    assert granules.held == 2 * UNIT


def test_a_limit_within_a_unit():
    """The unit was taken for a higher limit; what lies in it below this one can be had, and nothing more."""
    granules = Granules(space(1))
    assert granules.allocate(PAGE, ALL) == UNIT
    last = UNIT + 3 * PAGE - 1
    assert [granules.allocate(PAGE, last) for _ in range(2)] == [UNIT + PAGE, UNIT + 2 * PAGE]
    for limit in (last, last + PAGE - 1):
        with pytest.raises(NoIovaSpace):
            granules.allocate(PAGE, limit)
    assert granules.allocate(PAGE, last + PAGE) == UNIT + 3 * PAGE


def test_ranges_that_change():
    iovas = space(8)
    granules = Granules(iovas)
    small, large = granules.allocate(PAGE, ALL), granules.allocate(3 * UNIT, ALL)
    # unit 1 has the small one, 2 to 4 the large one; units 4 and up are not usable any more
    granules.move(((0, 4 * UNIT - 1),))
    with pytest.raises(NoIovaSpace):
        granules.allocate(UNIT, ALL)
    granules.release(large, 3 * UNIT)
    # a page goes on in the unit of the last one, which is usable still
    page = granules.allocate(PAGE, ALL)
    assert page == UNIT + PAGE
    granules.release(page, PAGE)
    assert [granules.allocate(UNIT, ALL) for _ in range(2)] == [2 * UNIT, 3 * UNIT]
    with pytest.raises(NoIovaSpace):
        granules.allocate(UNIT, ALL)
    granules.release(small, PAGE)
    assert granules.allocate(UNIT, ALL) == UNIT


def test_pages_after_the_ranges_have_changed():
    granules = Granules(space(8))
    granules.allocate(PAGE, ALL)
    granules.move(((4 * UNIT, 6 * UNIT - 1),))
    found = [granules.allocate(256 * PAGE, ALL) for _ in range(3)]
    assert found == [4 * UNIT + PAGE, 5 * UNIT, 5 * UNIT + 256 * PAGE]
    # not even now that only the old unit has room
    with pytest.raises(NoIovaSpace):
        granules.allocate(256 * PAGE, ALL)


def test_everything_at_once():
    iovas = space(8)
    granules = Granules(iovas)
    for size in (PAGE, 3 * PAGE, 3 * UNIT):
        granules.allocate(size, ALL)
    assert granules.holder(0, UNIT) is None
    assert granules.holder(2 * UNIT, 1) == (2 * UNIT, 3 * UNIT)
    granules.release_all()
    assert (granules.taken, granules.held, iovas.free) == (0, 0, 8 * UNIT)
