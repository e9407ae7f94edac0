from __future__ import annotations

import pytest
from report_qualified import KNOWN, qualification, qualified

from harness.qualified.compare import FLOOR, compare
from harness.results import Outcome


def timed(scenario, steps, **more):
    return qualified(scenario, fields={"stages": {"steps": steps, "boot": 9.0}}, **more)


def test_what_changed():
    fail = Outcome.FAIL
    before = qualification(
        qualified("breaks"), qualified("heals", outcome=fail), qualified("stays", outcome=fail), qualified("goes"),
        qualified("known", outcome=fail, known=KNOWN),
    )  # fmt: skip
    now = qualification(
        qualified("breaks", outcome=fail), qualified("heals"), qualified("stays", outcome=fail), qualified("comes"),
        qualified("known", outcome=fail),
    )  # fmt: skip
    found = compare(before, now, 1.5, "/old")
    assert [one.partition(" ")[0] for one in found.newly_failing] == ["breaks", "known"]
    assert [one.partition(" ")[0] for one in found.newly_passing] == ["heals"]
    assert [one.partition(" ")[0] for one in found.gone] == ["goes"]
    assert [one.partition(" ")[0] for one in found.new] == ["comes"]
    assert (found.before, found.folder, found.slower) == (before.started, "/old", ())


@pytest.mark.parametrize(
    ("before", "now", "slower"),
    [(1.0, 1.6, True), (1.0, 1.5, False), (0.1, 0.5, False), (0.1, 0.1 + FLOOR, True), (10.0, 14.0, False)],
)
def test_slower_is_beyond_the_ratio_and_beyond_noise(before, now, slower):
    found = compare(qualification(timed("a", before)), qualification(timed("a", now)), 1.5)
    assert [(one.before, one.now) for one in found.slower] == ([(before, now)] if slower else [])


def test_only_cells_that_passed_both_times_are_slower():
    failed = timed("a", 9.0, outcome=Outcome.FAIL)
    assert not compare(qualification(timed("a", 1.0)), qualification(failed), 1.5).slower


def test_a_cell_that_was_not_reached_is_neither_gone_nor_new():
    both, one = qualification(qualified("a"), qualified("b")), qualification(qualified("a"), planned=2)
    assert not compare(both, one, 1.5).gone
    assert not compare(one, both, 1.5).new


def test_a_run_and_a_matrix_are_matched_by_the_axes_that_both_have():
    run = qualification(*(
        one.model_copy(update={"name": one.scenario, "point": {"qemu": "11.1"}})
        for one in (qualified("a"), qualified("b"))
    ))  # fmt: skip
    run = run.model_copy(update={"axes": {"qemu": ("11.1",)}})
    found = compare(run, qualification(qualified("a", outcome=Outcome.FAIL), qualified("b")), 1.5)
    assert len(found.newly_failing) == 1
    assert (found.gone, found.new) == ((), ())


def test_where_the_common_axes_do_not_tell_cells_apart_names_do():
    run = qualification(qualified("a"), qualified("a", kernel="6.1")).model_copy(update={"axes": {"qemu": ("11.1",)}})
    now = qualification(qualified("a"), qualified("a", kernel="6.1", outcome=Outcome.FAIL))
    assert [one for one in compare(run, now, 1.5).newly_failing if "6.1]" not in one] == [now.cells[1].name]
