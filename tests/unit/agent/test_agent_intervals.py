"""Ranges found by what they meet, against looking at all of them."""

from __future__ import annotations

import random

from harness.agent.intervals import Intervals


def meeting(all_of_them, first, size):
    return {one for one in all_of_them if one[0] < first + size and first < one[0] + one[1]}


def test_as_looking_at_all():
    for seed in range(30):
        chance = random.Random(seed)
        intervals, model = Intervals(), set()
        for number in range(200):
            size = chance.choice((1, 4096, 65536, 65537, 1 << 21, 1 << 31))
            first = chance.randrange(1 << 24) << chance.choice((0, 8))
            if chance.random() < 0.7:
                intervals.add(first, size, number)
                model.add((first, size, number))
            else:
                found = intervals.take(first, size)
                assert set(found) == meeting(model, first, size)
                assert len(found) == len(set(found))
                model -= set(found)
            assert set(intervals) == model
        intervals.clear()
        assert not list(intervals)
        assert intervals.take(0, 1 << 64) == []


def test_equal_ranges_with_other_numbers_are_two():
    intervals = Intervals()
    intervals.add(0x1000, 0x1000, 1)
    intervals.add(0x1000, 0x1000, 2)
    assert list(intervals) == [(0x1000, 0x1000, 1), (0x1000, 0x1000, 2)]
    assert len(intervals.take(0x1FFF, 1)) == 2
