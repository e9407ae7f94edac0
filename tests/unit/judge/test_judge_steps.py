from __future__ import annotations

import pytest

from harness.judge import judge
from harness.results import Evidence, StepError, StepEvidence
from harness.scenario.model import Scenario


def scenario(*steps):
    return Scenario.model_validate(
        {
            "title": "t",
            "source": "s",
            "machine": {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}},
            "steps": list(steps),
        }
    )


def seen(index, kind, *, error=None, **fields):
    if error is not None:
        fields["error"] = StepError(type=error, message="because")
    return StepEvidence(index=index, kind=kind, args={}, **fields)


def checks(steps, evidence):
    """The checks of the steps: those of faults and witnesses are left out."""
    verdict = judge(scenario(*steps), Evidence(steps=tuple(evidence)))
    assert verdict.passed == all(check.passed for check in verdict.checks)
    return [check for check in verdict.checks if check.name not in ("faults", "witnesses")]


def one(step, **fields):
    (check,) = checks([step], [seen(0, next(iter(step)), **fields)])
    return check


MAP = {"buffer": "b", "size": 4096}
MAPS = {"map": MAP}
COMPARE = {"buffer": "b", "with": "c", "size": 16}
DMA = {"device": "edu0", "iova": 0x900000, "size": 16}


def test_a_step_without_expectation_passes_without_an_error():
    check = one(MAPS, returns=0x100000)
    assert (check.passed, check.name, check.step, check.message) == (True, "step 0 (map)", 0, "no error")


def test_an_error_that_nobody_expects():
    check = one(MAPS, error="NotAligned")
    assert not check.passed
    assert check.message == "expected no error, observed the error NotAligned: because"
    assert (check.expected, check.observed) == ("no error", "the error NotAligned: because")


def test_the_expected_error():
    check = one({"map": MAP, "expect": {"error": "NotAligned"}}, error="NotAligned")
    assert check.passed
    assert check.message == "the error NotAligned: because"


def test_another_error_than_the_expected_one():
    check = one({"map": MAP, "expect": {"error": "NotAligned"}}, error="AlreadyMapped")
    assert not check.passed
    assert check.message == "expected the error NotAligned, observed the error AlreadyMapped: because"


def test_the_expected_error_does_not_happen():
    check = one({"check": {"buffer": "b", "pattern": "zero"}, "expect": {"error": "NotAligned"}}, values={})
    assert not check.passed
    assert check.message == "expected the error NotAligned, observed no error"


@pytest.mark.parametrize(
    ("wanted", "returned", "passes"),
    [
        (0, 0, True),
        (0, 1, False),
        (0, None, False),
        (None, None, True),
        (None, 0, False),
        ("nonzero", 5, True),
        ("nonzero", -1, True),
        ("nonzero", 0, False),
        ("nonzero", None, False),
    ],
)
def test_return_values(wanted, returned, passes):
    assert one({"map": MAP, "expect": {"returns": wanted}}, returns=returned).passed is passes


def test_a_wrong_return_value_in_words():
    check = one({"map": MAP, "expect": {"returns": 0}}, returns=0x200000)
    assert check.message == "expected the return value 0, observed the return value 2097152 (0x200000)"


def test_returns_is_looked_at_beside_an_error():
    step = {"map": MAP, "expect": {"error": "NotAligned", "returns": 0}}
    assert one(step, error="NotAligned", returns=0).passed
    check = one(step, error="NotAligned", returns=7)
    assert check.message == "expected the return value 0, observed the return value 7"


def test_null_is_not_the_same_as_nothing_said():
    assert one({"alloc": {"as": "a", "size": 1}}, returns=5).passed
    assert not one({"alloc": {"as": "a", "size": 1}, "expect": {"returns": None}}, returns=5).passed


@pytest.mark.parametrize("step", [{"check": {"buffer": "b", "pattern": "zero"}}, {"compare": COMPARE}])
def test_check_and_compare_must_be_equal_by_default(step):
    assert one(step, values={"equal": True, "first_difference": None}).passed
    check = one(step, values={"equal": False, "first_difference": 12})
    assert not check.passed
    assert check.message == "expected equal bytes, observed bytes that differ, the first at 12"
    assert one({**step, "expect": {"equal": False}}, values={"equal": False, "first_difference": 12}).passed
    check = one({**step, "expect": {"equal": False}}, values={"equal": True})
    assert check.message == "expected bytes that differ, observed equal bytes"


@pytest.mark.parametrize("value", [None, 1, "yes", [True]])
def test_a_comparison_without_a_word_on_it_fails(value):
    check = one({"compare": COMPARE}, values={} if value is None else {"equal": value})
    assert check.message == "expected equal bytes, observed no word on it"
    assert not one({"translate_back": {"buffer": "b"}}, values={} if value is None else {"same": value}).passed


def test_translate_back_must_be_the_same_by_default():
    step = {"translate_back": {"buffer": "b"}}
    assert one(step, values={"same": True}).passed
    check = one(step, values={"same": False, "found": None})
    assert check.message == "expected the same virtual address, observed another virtual address, null"
    assert one({**step, "expect": {"same": False}}, values={"same": False}).passed
    assert not one({**step, "expect": {"same": False}}, values={"same": True}).passed


@pytest.mark.parametrize(
    ("wanted", "values", "passes"),
    [
        ("contiguous", {"present": 4, "absent": 0, "contiguous": True}, True),
        ("contiguous", {"present": 4, "absent": 0, "contiguous": False}, False),
        ("contiguous", {"present": 3, "absent": 1, "contiguous": True}, False),
        ("contiguous", {"present": 0, "absent": 0, "contiguous": True}, False),
        ("contiguous", {"present": 4, "absent": 0}, False),
        ("contiguous", {}, False),
        ("absent", {"present": 0, "absent": 4}, True),
        ("absent", {"present": 1, "absent": 3}, False),
        ("absent", {"present": 0, "absent": 0}, False),
        ("absent", {"present": True, "absent": 1}, False),
    ],
)
def test_translation(wanted, values, passes):
    check = one({"translate": {"buffer": "b"}, "expect": {"translation": wanted}}, values=values)
    assert check.passed is passes


def test_translation_in_words():
    values = {"present": 3, "absent": 1, "contiguous": False}
    check = one({"translate": {"buffer": "b"}, "expect": {"translation": "contiguous"}}, values=values)
    assert check.message == (
        "expected every address translated, contiguous from the first, "
        "observed 3 addresses translated, 1 not, not contiguous"
    )
    assert one({"translate": {"buffer": "b"}}, values={}).passed


@pytest.mark.parametrize("kind", ["dma_read", "dma_write"])
def test_a_dma_must_complete(kind):
    assert one({kind: DMA}, values={"completed": True}).passed
    for values in ({}, {"completed": False}, {"completed": 1}):
        check = one({kind: DMA}, values=values)
        assert check.message == "expected a completed DMA, observed a DMA that did not complete"


def test_steps_that_did_not_run():
    found = checks([MAPS, MAPS, MAPS], [seen(0, "map")])
    assert [(check.name, check.passed) for check in found] == [
        ("step 0 (map)", True),
        ("step 1 (map)", False),
        ("step 2 (map)", False),
    ]
    assert found[1].message == "expected this step to run, observed that it did not"


def test_evidence_without_a_step():
    found = checks([MAPS], [seen(0, "map"), seen(1, "close"), seen(2, "close")])
    assert found[1].name == "step 1 (close)"
    assert found[1].message == "expected 1 steps of the scenario, observed evidence of 3"
    assert not found[1].passed


def test_evidence_of_another_step():
    (check,) = checks([MAPS], [seen(0, "close")])
    assert check.message == "expected evidence of map, observed evidence of close"


FORK = {"fork": {"steps": [MAPS, {"map": MAP, "expect": {"error": "NotAligned"}}]}}


def test_children_of_a_fork():
    children = (seen(0, "map"), seen(1, "map", error="NotAligned"))
    found = checks([MAPS, FORK], [seen(0, "map"), seen(1, "fork", children=children)])
    assert [(check.name, check.passed, check.step) for check in found] == [
        ("step 0 (map)", True, 0),
        ("step 1 (fork)", True, 1),
        ("step 1.0 (map)", True, 1),
        ("step 1.1 (map)", True, 1),
    ]


def test_a_child_that_fails_one_that_is_missing_and_one_too_many():
    found = checks([FORK], [seen(0, "fork", children=(seen(0, "map", error="Oops"),))])
    assert [check.passed for check in found] == [True, False, False]
    assert found[2].name == "step 0.1 (map)"
    children = (seen(0, "map"), seen(1, "map", error="NotAligned"), seen(2, "map"))
    found = checks([FORK], [seen(0, "fork", children=children)])
    assert (found[3].name, found[3].message) == (
        "step 0.2 (map)",
        "expected 2 steps of the fork, observed evidence of 3",
    )


def test_a_fork_that_did_not_run_has_no_children_that_did():
    assert [check.passed for check in checks([FORK], [])] == [False, False, False]


def test_a_fork_whose_child_died():
    found = checks([FORK], [seen(0, "fork", error="ChildDied")])
    assert [check.passed for check in found] == [False, False, False]
