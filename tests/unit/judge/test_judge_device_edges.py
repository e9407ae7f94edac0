"""What is known already, and what excuses a refusal without a fault or a word of the driver, and what does not."""

from __future__ import annotations

import pytest
from test_judge_device_faults import FAULT, READ, checked, operate, problem, step, transfer

from harness.judge.device_ranges import Difference, outside
from harness.results import Belief

TRANSLATED, FREE = Belief(), Belief(translated=False, unknown="there is no IOMMU")
SILENT = "the trace of no such fault"


# ---- differences that were told


@pytest.mark.parametrize(("believed", "seen"), [("", "r"), ("", "w"), ("rw", "rw"), ("r", "")])
def test_another_access_at_the_same_place_is_told(believed, seen):
    fresh = Difference("leak", 0x2000, 0x4000, believed, seen)
    assert outside([fresh], [Difference("leak", 0x1000, 0x8000, "", "rw")]) == [fresh]
    assert outside([fresh], [Difference("leak", 0x1000, 0x8000, believed, seen)]) == []


# ---- refusals without a fault


def test_a_write_is_refused_silently_where_the_page_can_be_read_only():
    read, write = transfer(refused=()), transfer("write")
    for access, found in (("r", ""), ("rw", SILENT), ("w", SILENT)):
        told = problem(step(read, write, ranges=((0x900000, 0x1000, access, 1, 0),)))
        assert told.endswith(found)
        assert bool(told) is bool(found)


def test_a_read_is_never_refused_silently():
    read, refused = transfer(refused=()), transfer()
    assert SILENT in problem(step(read, refused, ranges=((0x900000, 0x1000, "r", 1, 0),)))


@pytest.mark.parametrize(
    ("before", "after", "excused"),
    [(FREE, TRANSLATED, True), (TRANSLATED, FREE, True), (FREE, FREE, True), (TRANSLATED, TRANSLATED, False)],
)
def test_a_step_translated_when_the_iommu_did_so_before_it_and_behind_it(before, after, excused):
    steps = step(believed=before), step(transfer(), index=1, believed=after)
    found, notes = checked(*steps)
    assert found[0].passed is excused
    assert any("did not translate" in note for note in notes) is excused
    assert SILENT in problem(*steps, step(transfer(), index=2, believed=TRANSLATED), step(transfer(), index=3))


# ---- transfers that failed


@pytest.mark.parametrize("error", ["ENODEV", "ECANCELED"])
def test_a_transfer_that_failed_is_cut_short_only_where_it_says_so(error):
    second = FAULT.format(0x200, 6, 0x901000, 0)
    for cut in (True, False):
        one = transfer(size=8192, refused=((0x900000, 4096),), error=error, cut=cut)
        assert bool(problem(step(one, trace=(READ, second)))) is not cut
        assert bool(problem(step(one))) is not cut
    whole = transfer(size=8192, refused=(), error=error)
    assert "the device of no such DMA" in problem(step(whole, trace=(READ,)))


# ---- requests that were handed over


@pytest.mark.parametrize("end", ["reset", "close", "unbind", "unplug", "vanish", "surprise_removal"])
def test_requests_that_were_handed_over_before_an_end_count_no_more(end):
    handed, lie = operate(None, wait=False), operate("done", transfer(), index=2)
    assert problem(handed, step(index=1, kind=end, args={"device": "qat1"}), lie) == "", "another device's end"
    found = problem(handed, step(index=1, kind=end, args={"device": "qat0"}), lie)
    assert found == "step 2 (operate): the driver says done, the device tells of a refused read at 0x900000"
