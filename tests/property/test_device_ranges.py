"""Random mappings made and taken away: every way to write the same addresses down is the same."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.agent.ranges import coalesce, pack
from harness.device.mirror import Mirror, letters
from harness.judge.device_ranges import differences, expand, outside
from harness.results import Belief

PAGES = 40
mappings = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, 6), st.sampled_from(["r", "rw"]), st.booleans()), max_size=60
)


def play(actions):
    """The pages that are left with their access, and what a mirror that saw it all says."""
    pages: dict[int, str] = {}
    mirror = Mirror()
    for first, count, access, make in actions:
        span = range(first, first + count)
        if make and not any(page in pages for page in span):
            pages |= dict.fromkeys(span, access)
            mirror.add(first, count, {"r": 1, "rw": 3}[access])
        elif not make:
            for page in span:
                pages.pop(page, None)
            mirror.remove(first, count)
    return pages, [(one.iova, one.size, letters(one.access)) for one in mirror.ranges()]


@given(mappings)
def test_the_same_pages_are_the_same_ranges(actions):
    pages, seen = play(actions)
    single = [(page, 1, access) for page, access in reversed(pages.items())]
    assert coalesce(single) == coalesce(seen) == seen
    assert expand(pack(single)) == [(first, first + size, access) for first, size, access in seen]
    assert differences(Belief(runs=tuple(pack(single))), pack(seen)) == []


@given(mappings, mappings)
def test_differences_are_those_of_the_pages(left, right):
    believed, seen = play(left)[0], play(right)[0]
    runs = [tuple(pack((page, 1, access) for page, access in side.items())) for side in (believed, seen)]
    found = differences(Belief(runs=runs[0]), runs[1])
    told = {page: (one.believed, one.seen) for one in found for page in range(one.first, one.end)}
    wanted = {
        page: (believed.get(page, ""), seen.get(page, ""))
        for page in range(2 * PAGES)
        if believed.get(page) != seen.get(page)
    }
    assert told == wanted
    assert sum(one.end - one.first for one in found) == len(wanted)  # nothing twice
    assert outside(found, found) == []
    assert outside(found, []) == found


@given(st.lists(st.integers(0, 200), unique=True), st.integers(1, 3))
def test_what_is_known_in_part(pages, size):
    """At least this, and no more of that: what is mapped besides is nobody's business."""
    here, gone = pages[::2], pages[1::2]
    runs = tuple(pack((page * 4, size, "rw") for page in here))
    ended = tuple(pack((page * 4, size, "rw") for page in gone))
    belief = Belief(runs=runs, gone=ended, exact=False)
    assert differences(belief, pack((page * 4, 3, "rw") for page in here)) == []
    found = differences(belief, pack((page * 4, size, "rw") for page in pages))
    assert sorted(one.first for one in found) == sorted(page * 4 for page in gone)
    assert {one.first for one in differences(belief, ())} == {page * 4 for page in here}


@settings(deadline=None)  # 70,000 take long where other work goes on
@given(st.integers(1, 70_000), st.integers(1, 4), st.integers(5, 9))
def test_thousands_of_mappings_are_a_line(count, size, stride):
    assert pack((n * stride, size, "rw") for n in range(count)) == [(0, size, "rw", count, stride if count > 1 else 0)]
