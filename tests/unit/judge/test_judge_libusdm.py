"""The steps on Intel's C library: what is known of it must be seen, and everything else must be as it should be."""

from __future__ import annotations

import pytest

from harness.judge import judge
from harness.results import Evidence, Finding, StepError, StepEvidence
from harness.scenario.defects import DEFECTS
from harness.scenario.model import Scenario

NEW, OLD = "26.08.0-2", "24.02.0-1"
MAP = {"buffer": "b", "size": 4096}
KNOWN = {
    "translate": {"buffer": "b"},
    "expect": {"translation": "absent"},
    "libusdm": {"defect": "D1", "expect": {"translation": "partial", "counts": {"present": 3, "absent": 1}}},
}
PARTIAL = {"present": 3, "absent": 1, "contiguous": True}
ABSENT = {"present": 0, "absent": 4, "contiguous": False}


def scenario(*steps, faults=(), known=None):
    expect = {"faults": list(faults)} | ({} if known is None else {"libusdm": known})
    machine = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}
    return Scenario.model_validate(
        {"title": "t", "source": "s", "machine": machine, "steps": list(steps), "expect": expect}
    )


def seen(index, kind, *, error=None, said="", **fields):
    if error is not None:
        fields["error"] = StepError(type=error, message=said)
    return StepEvidence(index=index, kind=kind, args={}, **fields)


def verdict(step, libusdm=NEW, **fields):
    evidence = Evidence(steps=(seen(0, next(iter(step)), **fields),), libusdm=libusdm)
    return judge(scenario(step), evidence)


MEANING = DEFECTS["D1"]


# ---- what is known


def test_a_defect_that_is_seen_is_a_finding():
    found = verdict(KNOWN, values=PARTIAL)
    assert found.passed
    assert found.checks[0].name == "step 0 (translate), known as D1"
    assert found.findings == (Finding(defect="D1", step=0, observed=found.checks[0].observed, meaning=MEANING),)
    assert "3 addresses translated, 1 not" in found.findings[0].observed


@pytest.mark.parametrize(
    "values", [ABSENT, {"present": 2, "absent": 2, "contiguous": True}, {}, {"present": 4, "absent": 0}]
)
def test_a_defect_that_is_not_seen_is_a_failure_and_no_finding(values):
    """Also when the library does what is right: then the list of its defects is wrong."""
    found = verdict(KNOWN, values=values)
    assert not found.passed
    assert not found.checks[0].passed
    assert found.findings == ()


def test_usdm_must_do_what_is_right_and_has_no_findings():
    assert verdict(KNOWN, libusdm="", values=ABSENT).passed
    found = verdict(KNOWN, libusdm="", values=PARTIAL)
    assert (found.passed, found.findings) == (False, ())
    assert found.checks[0].name == "step 0 (translate)"


@pytest.mark.parametrize("versions", [">=26.02", ">=26.08", ">=26.02, <27"])
def test_other_versions_do_what_is_right(versions):
    step = {**KNOWN, "libusdm": {**KNOWN["libusdm"], "versions": versions}}
    assert verdict(step, NEW, values=PARTIAL).findings
    assert not verdict(step, NEW, values=ABSENT).passed
    assert not verdict(step, OLD, values=PARTIAL).passed
    good = verdict(step, OLD, values=ABSENT)
    assert (good.passed, good.findings) == (True, ())
    assert good.checks[0].name == "step 0 (translate)"


def test_what_is_known_is_the_whole_expectation():
    """Nothing of the step's own stays: without a word on it, no error is expected."""
    step = {"map": MAP, "expect": {"error": "AlreadyMapped", "returns": 0}, "libusdm": {"defect": "D4"}}
    assert verdict(step, returns=0x200000).passed
    assert verdict(step, returns=0).passed
    assert not verdict(step, error="CFailure", returns=0).passed


@pytest.mark.parametrize("defect", ["policy", "absent"])
def test_a_difference_that_is_no_defect_is_a_finding_too(defect):
    step = {"at_fork": {}, "libusdm": {"defect": defect, "expect": {"error": "NotOffered"}}}
    assert [one.defect for one in verdict(step, error="NotOffered").findings] == [defect]
    assert not verdict(step).passed


def test_defects_in_the_children_of_a_fork():
    fork = {"fork": {"steps": [{"map": MAP}, {**KNOWN, "libusdm": {**KNOWN["libusdm"], "defect": "F2"}}]}}

    def run(values):
        children = (seen(0, "map"), seen(1, "translate", values=values))
        steps = (seen(0, "map"), seen(1, "fork", children=children))
        return judge(scenario({"map": MAP}, fork), Evidence(steps=steps, libusdm=NEW))

    good = run(PARTIAL)
    assert [(one.defect, one.step) for one in good.findings] == [("F2", 1)]
    assert [check.name for check in good.checks if "known" in check.name] == ["step 1.1 (translate), known as F2"]
    bad = run(ABSENT)
    assert (bad.passed, bad.findings) == (False, ())


def test_one_defect_of_two_is_seen():
    steps = (seen(0, "translate", values=PARTIAL), seen(1, "translate", values=ABSENT))
    found = judge(scenario(KNOWN, KNOWN), Evidence(steps=steps, libusdm=NEW))
    assert [(one.defect, one.step) for one in found.findings] == [("D1", 0)]
    assert not found.passed


def test_a_step_that_did_not_run_shows_nothing():
    found = judge(scenario(KNOWN), Evidence(libusdm=NEW))
    assert (found.passed, found.findings) == (False, ())


# ---- the names of errors


@pytest.mark.parametrize("error", ["NotMapped", "AlreadyMapped", "ForkedChild", "MapFailed"])
def test_the_librarys_one_failure_is_every_error_of_usdm(error):
    step = {"map": MAP, "expect": {"error": error, "returns": 0}}
    assert verdict(step, error="CFailure", returns=0).passed
    assert not verdict(step, returns=0).passed
    assert not verdict(step, libusdm="", error="CFailure", returns=0).passed, "of usdm the name is known"


def test_another_error_is_not_met_by_it():
    step = {"map": MAP, "expect": {"error": "NotMapped"}}
    for error in ("NotOffered", "NotAccessible", "InternalError", "NoLibrary"):
        assert not verdict(step, error=error).passed


@pytest.mark.parametrize("error", ["NotAccessible", "DeviceNotOpen", "NoIova", "ChildFailed", "DmaTimeout"])
def test_errors_of_the_steps_themselves_keep_their_names(error):
    step = {"fill": {"buffer": "b", "pattern": "zero"}, "expect": {"error": error}}
    assert verdict(step, error=error).passed
    assert not verdict(step, error="CFailure").passed


def test_a_function_that_is_there_and_fails_is_not_absent():
    """`absent` would be seen where it is not."""
    step = {"at_fork": {}, "libusdm": {"defect": "absent", "expect": {"error": "NotOffered"}}}
    found = verdict(step, error="CFailure")
    assert (found.passed, found.findings) == (False, ())


def test_an_allocation_that_fails_is_met_although_a_step_has_an_error_of_that_name():
    step = {"alloc": {"as": "a", "size": 4096}, "expect": {"error": "NoMemory", "returns": None}}
    assert verdict(step, error="CFailure").passed
    buffer = {"buffer": {"as": "a", "size": 4096}, "expect": {"error": "NoMemory"}}
    assert verdict(buffer, error="NoMemory").passed


def test_an_error_that_nobody_expects_fails():
    assert not verdict({"map": MAP}, error="CFailure").passed


# ---- words


def test_usdms_words_are_not_asked_of_the_library():
    step = {"map": MAP, "expect": {"error": "TooLarge", "says": "2 GiB"}}
    assert not verdict(step, libusdm="", error="TooLarge", said="no word").passed
    assert verdict(step, error="CFailure", said="no word").passed


def test_the_librarys_own_words_are():
    known = {"defect": "L1", "expect": {"error": "CFailure", "says": "said nothing"}}
    step = {"map": MAP, "expect": {"error": "TooLarge"}, "libusdm": known}
    assert verdict(step, error="CFailure", said="returned 0 and said nothing").findings
    assert not verdict(step, error="CFailure", said="returned 0 and said: too large").passed


# ---- faults

READ = {"dma_read": {"device": "edu0", "iova": 0x900000, "size": 16}, "id": "late"}
FAULT = {"device": "edu0", "access": "read", "address": 0x900000, "reason": 6, "step": "late"}


def dma(faulted, libusdm=NEW):
    trace = ("vtd_dmar_fault sid 0x200 fault 6 addr 0x900000 write 0",) if faulted else ()
    log = (
        (
            "[    9.000000] DMAR: DRHD: handling fault status reg 2",
            "[    9.000001] DMAR: [DMA Read NO_PASID] Request device [02:00.0] fault addr 0x900000 "
            "[fault reason 0x06] words",
        )
        if faulted
        else ()
    )
    step = seen(0, "dma_read", values={"completed": True}, trace=trace)
    return Evidence(steps=(step,), devices={"edu0": "02:00.0"}, libusdm=libusdm, kernel_log=log)


def test_the_faults_of_the_library_instead():
    one = scenario(READ, faults=[FAULT], known={"defect": "D10", "faults": []})
    good = judge(one, dma(faulted=False))
    assert good.passed
    assert [(found.defect, found.step) for found in good.findings] == [("D10", None)]
    assert good.findings[0].observed == "no fault in the trace"
    fixed = judge(one, dma(faulted=True))
    assert (fixed.passed, fixed.findings) == (False, ())
    assert judge(one, dma(faulted=True, libusdm="")).passed
    assert not judge(one, dma(faulted=False, libusdm="")).passed


def test_faults_where_there_should_be_none():
    one = scenario(READ, known={"defect": "D2", "versions": ">=26.08", "faults": [FAULT]})
    assert [found.defect for found in judge(one, dma(faulted=True)).findings] == ["D2"]
    assert not judge(one, dma(faulted=False)).passed
    old = judge(one, dma(faulted=False, libusdm=OLD))
    assert (old.passed, old.findings) == (True, ())
    assert not judge(one, dma(faulted=True, libusdm=OLD)).passed
