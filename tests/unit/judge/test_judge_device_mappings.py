"""What a device can reach against what the program believes, with made-up evidence."""

from __future__ import annotations

import pytest

from harness.judge import judge, judge_both
from harness.judge.device_mappings import check_mappings
from harness.results import Belief, Check, DeviceNews, Evidence, Run, StepError, StepEvidence
from harness.scenario import Scenario
from harness.scenario.load import parse_scenario

K = 1024
RW: tuple[Run, ...] = ((0x200000, 8 * K, "rw", 1, 0),)


def news(ranges=None, believed=None, **more) -> DeviceNews:
    belief = believed if believed is None or isinstance(believed, Belief) else Belief(runs=believed)
    return DeviceNews(connected=more.pop("connected", True), ranges=ranges, believed=belief, **more)


def evidence(*steps: DeviceNews, kind: str = "translate", libusdm: str = "", **more) -> Evidence:
    return Evidence(
        steps=tuple(
            StepEvidence(index=index, kind=kind, args={"device": "qat0"}, devices={"qat0": one}, **more)
            for index, one in enumerate(steps)
        ),
        devices={"qat0": "02:00.0"},
        libusdm=libusdm,
    )


def checks(*steps: DeviceNews, **more) -> list[Check]:
    return check_mappings((), evidence(*steps, **more))[0]


@pytest.mark.parametrize(
    ("believed", "seen", "expected", "observed"),
    [
        ((), RW, "nothing at 0x200000-0x201fff (8K)", "a leak: rw at 0x200000-0x201fff (8K)"),
        (RW, (), "rw at 0x200000-0x201fff (8K)", "no mapping at 0x200000-0x201fff (8K)"),
        (
            RW,
            ((0x200000, 12 * K, "rw", 1, 0),),
            "rw at 0x200000-0x201fff (8K)",
            "a mapping that is too long: rw at 0x202000-0x202fff (4K) too",
        ),
        (
            RW,
            ((0x200000, 4 * K, "rw", 1, 0),),
            "rw at 0x200000-0x201fff (8K)",
            "a mapping that is too short: nothing at 0x201000-0x201fff (4K)",
        ),
        (RW, ((0x200000, 8 * K, "r", 1, 0),), "rw at 0x200000-0x201fff (8K)", "r at 0x200000-0x201fff (8K)"),
        (
            ((0x200000, 8 * K, "r", 1, 0),),
            RW,
            "r at 0x200000-0x201fff (8K)",
            "rw at 0x200000-0x201fff (8K)",
        ),
        # A part of several, and at the ends of the address space.
        (((0, 4 * K, "rw", 3, 8 * K),), ((0, 4 * K, "rw", 2, 16 * K),), "rw at 0x2000-0x2fff (4K)", "no mapping at"),
        ((), (((1 << 64) - 4 * K, 4 * K, "rw", 1, 0),), "nothing at 0xfffffffffffff000-", "a leak"),
    ],
)
def test_what_is_wrong_is_told(believed, seen, expected, observed):
    (found,) = checks(news(seen, believed))
    assert not found.passed
    assert found.step == 0
    assert found.expected.startswith(expected)
    assert found.observed.startswith(observed)
    assert found.message == f"expected {found.expected}, observed {found.observed}"


@pytest.mark.parametrize(
    ("believed", "seen"),
    [
        ((), ()),
        (RW, RW),
        (RW, ((0x200000, 4 * K, "rw", 2, 4 * K),)),
        # QEMU says of a mapping that can be written only that it can be read, too.
        (((0x200000, 8 * K, "w", 1, 0),), RW),
        (((0x200000, 4 * K, "w", 1, 0), (0x201000, 4 * K, "rw", 1, 0)), RW),
    ],
)
def test_what_is_right(believed, seen):
    (found,) = checks(news(seen, believed))
    assert found.passed
    assert found.name == "device qat0: mappings"


def test_a_difference_is_told_once_and_at_its_step():
    more = (*RW, (0x400000, 4 * K, "rw", 1, 0))
    found = checks(news(RW, RW), news(more), news(), news(believed=more), news(believed=RW))
    # It is no difference while the program believes in it, and a new one afterwards.
    assert [(one.step, one.passed) for one in found] == [(1, False), (4, False)]
    assert all("0x400000" in one.message and "0x200000" not in one.message for one in found)


def test_a_difference_that_grows_is_told_by_what_is_new():
    found = checks(news(RW, ()), news(((0x200000, 16 * K, "rw", 1, 0),)))
    assert [one.observed for one in found] == [
        "a leak: rw at 0x200000-0x201fff (8K)",
        "a leak: rw at 0x202000-0x203fff (8K)",
    ]


def test_a_step_that_failed_is_judged_too():
    error = StepError(type="MapFailed", message="m")
    (found,) = checks(news(RW, ()), error=error)
    assert not found.passed


def test_where_not_everything_is_known():
    promised = Belief(runs=RW, exact=False, gone=((0x800000, 4 * K, "rw", 1, 0),))
    slab = ((0x200000, 2 << 20, "rw", 1, 0),)
    assert checks(news(slab, promised))[0].passed
    (found,) = checks(news((*slab, (0x800000, 8 * K, "rw", 1, 0)), promised))
    assert found.observed == "a leak: rw at 0x800000-0x800fff (4K)"
    (found,) = checks(news((), promised))
    assert found.observed.startswith("no mapping")


def test_nothing_to_compare_is_said():
    gone = Belief(unknown="its container has no IOMMU", translated=False)
    for steps, reason in (
        ((news(RW, RW, connected=False),), "the device is gone"),
        ((news(RW, gone), news()), "its container has no IOMMU"),
        ((news(RW),), "nobody was asked"),
    ):
        found, notes = check_mappings((), evidence(*steps))
        assert found == []
        assert len(notes) == 1
        assert reason in notes[0]
        assert "step 0 (translate)" in notes[0]


def test_a_device_of_the_virtual_machine_is_left_alone():
    found, notes = check_mappings((), evidence(news(RW, ()), kind="pass_through"))
    assert found == []
    assert "virtual machine" in notes[0]
    failed = evidence(news(RW, ()), kind="pass_through", error=StepError(type="StillOpen", message="m"))
    assert not check_mappings((), failed)[0][0].passed


def test_a_program_that_cannot_say_fails_once():
    found = checks(news((), Belief(failure="InternalError: Traceback\n  x\nKeyError: 5\n")), news())
    assert [(one.passed, one.observed) for one in found] == [(False, "KeyError: 5")]


SCENARIO = """
title: t
source: s
machine: {devices: {qat0: {model: qat, at: "02:00.0"}}}
steps:
  - register: {device: qat0}
    libusdm: {defect: D10, expect: {returns: 0}}
  - fork:
      steps:
        - register: {device: qat0}
          libusdm: {defect: F1, expect: {returns: 0}}
  - register: {device: qat0}
"""


@pytest.mark.parametrize(("step", "known"), [(0, "D10"), (1, "F1"), (2, "")])
def test_a_known_defect_of_the_c_library_stands_at_its_step(step, known):
    scenario = parse_scenario(SCENARIO, "x.yaml")
    assert isinstance(scenario, Scenario)
    promised = Belief(exact=False, gone=RW)
    steps = [news((), promised)] * step + [news(RW)]
    if step == 0:
        steps = [news(RW, promised)]
    (found,) = check_mappings(scenario.steps, evidence(*steps, libusdm="26.08.0-2"))[0]
    assert (found.passed, found.known, found.step) == (bool(known), known, step)
    # Or at the scenario, whose faults are others because of it.
    (found,) = check_mappings((), evidence(*steps, libusdm="26.08.0-2"), "D4")[0]
    assert (found.passed, found.known) == (True, "D4")
    # Of usdm nothing is known.
    (found,) = check_mappings(scenario.steps, evidence(*steps))[0]
    assert not found.passed


def test_both_are_judged_by_themselves():
    scenario = parse_scenario(SCENARIO, "x.yaml")
    assert isinstance(scenario, Scenario)
    good, bad = evidence(news(RW, RW)), evidence(news(RW, ()), libusdm="26.08.0-2")
    names = [check.name for check in judge_both(scenario, good, bad).checks if "device" in check.name]
    assert "usdm: device qat0: mappings" in names
    assert "libusdm: device qat0: mappings after step 0 (translate), known as D10" in names
    assert not judge(scenario, evidence(news(RW, ()))).passed


def test_what_went_wrong_first_is_told_first():
    """A leak is the cause of what later steps do, and stands before the faults of the whole."""
    on = {"bus_master": {"device": "q", "enabled": True}}
    devices = {"devices": {"q": {"model": "qat", "at": "02:00.0"}}}
    fault = {"device": "q", "access": "read", "address": 0x900000, "reason": 6}
    whole = Scenario.model_validate(
        {"title": "t", "source": "s", "machine": devices, "steps": [on, on], "expect": {"faults": [fault]}}
    )
    leak = DeviceNews(connected=True, ranges=((0, 4096, "rw", 1, 0),), believed=Belief())
    first = StepEvidence(index=0, kind="bus_master", args={"device": "q"}, devices={"q": leak})
    error = StepError(type="OSError", message="no")
    second = StepEvidence(index=1, kind="bus_master", args={"device": "q"}, error=error)
    verdict = judge(whole, Evidence(steps=(first, second), devices={"q": "0000:02:00.0"}))
    failed = [check.name for check in verdict.checks if not check.passed]
    assert failed == ["device q: mappings after step 0 (bus_master)", "step 1 (bus_master)", "faults"]
