"""The mirror of mappings, as many as a guest may have."""

from __future__ import annotations

import random

import pytest

from harness.device.mirror import ALL, Mapping, Mirror, Overlap, letters
from harness.device.wire import Access

MANY = 65_000
BASE = 0x4_0000_0000


@pytest.mark.parametrize("step", [1, 2])
def test_65000_single_pages_come_and_go_in_any_order_and_none_is_lost(step: int) -> None:
    pages = [BASE + 4096 * step * number for number in range(MANY)]
    chance = random.Random(7)
    mirror = Mirror()
    for page in chance.sample(pages, MANY):
        mirror.add(page, 4096, Access.READ | Access.WRITE)
    assert len(mirror) == MANY
    assert mirror.ranges() == ([(BASE, 4096 * MANY, 3)] if step == 1 else [(page, 4096, 3) for page in pages])
    gone = set(chance.sample(pages, MANY // 2))
    assert sum(mirror.remove(page, 4096) for page in chance.sample(sorted(gone), len(gone))) == 4096 * len(gone)
    assert all(mirror.covers(page, 4096, 3) == (page not in gone) for page in pages)
    assert mirror.remove(0, ALL) == 4096 * (MANY - len(gone))
    assert (len(mirror), mirror.ranges()) == (0, [])


def test_the_whole_address_space_can_be_one_mapping() -> None:
    mirror = Mirror()
    mirror.add(0, ALL, Access.READ)
    assert mirror.covers(ALL - 1, 1, Access.READ)
    assert not mirror.covers(0, 1, Access.WRITE)
    with pytest.raises(Overlap):
        mirror.add(ALL - 1, 1, Access.READ)
    assert mirror.remove(0x1000, 0x1000) == 0x1000
    assert mirror.ranges() == [Mapping(0, 0x1000, 1), Mapping(0x2000, ALL - 0x2000, 1)]
    mirror.clear()
    with pytest.raises(ValueError, match="0x2 bytes at"):
        mirror.add(ALL - 1, 2, Access.READ)


def test_an_access_has_letters() -> None:
    assert [letters(access) for access in (1, 2, 3)] == ["r", "w", "rw"]
