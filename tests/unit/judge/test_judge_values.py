"""What else can be expected of a step: words, pointers, numbers, nodes; and that IOVAs are aligned."""

from __future__ import annotations

import pytest

from harness.judge import judge
from harness.results import Check, Evidence, StepError, StepEvidence
from harness.scenario.model import Scenario

MAP = {"buffer": "b", "size": 4096}
MIB = 1 << 20


def one(step, *, error=None, said="because", libusdm="", **fields) -> Check:
    scenario = Scenario.model_validate(
        {"title": "t", "source": "s", "machine": {"devices": {}}, "steps": [step], "needs": {}}
    )
    if error is not None:
        fields["error"] = StepError(type=error, message=said)
    seen = StepEvidence(index=0, kind=next(iter(step)), args={}, **fields)
    return judge(scenario, Evidence(steps=(seen,), libusdm=libusdm)).checks[0]


# ---- says


@pytest.mark.parametrize(
    ("said", "passes"), [("errno=22", True), ("it is: errno=22, sorry", True), ("errno=12", False), ("", False)]
)
def test_what_the_error_says(said, passes):
    step = {"map": MAP, "expect": {"error": "MapFailed", "says": "errno=2[0-9]"}}
    check = one(step, error="MapFailed", said=said)
    assert check.passed is passes
    if said == "errno=12":
        assert check.message == 'expected an error that says errno=2[0-9], observed "errno=12"'


def test_words_are_expected_although_no_error_is():
    check = one({"map": MAP, "expect": {"says": "x"}})
    assert not check.passed
    assert check.message == 'expected an error that says x, observed ""'


# ---- pointer


@pytest.mark.parametrize("kind", ["free", "free_plain"])
@pytest.mark.parametrize(("wanted", "found", "passes"), [("null", "null", True), ("kept", "null", False)])
def test_what_becomes_of_the_pointer(kind, wanted, found, passes):
    check = one({kind: {"buffer": "b"}, "expect": {"pointer": wanted}}, values={"pointer": found})
    assert check.passed is passes
    if not passes:
        assert check.message == 'expected pointer "kept", observed pointer "null"'


def test_the_pointer_is_looked_at_beside_an_error():
    step = {"free": {"buffer": "b"}, "expect": {"error": "DoubleFree", "pointer": "kept"}}
    assert one(step, error="DoubleFree", values={"pointer": "kept"}).passed
    assert not one(step, error="DoubleFree", values={"pointer": "null"}).passed
    assert one(step, error="DoubleFree").message == 'expected pointer "kept", observed no word on it'
    assert not one(step, values={"pointer": "kept"}).passed


# ---- counts


@pytest.mark.parametrize(
    ("counts", "values", "passes"),
    [
        ({"done": 3}, {"done": 3}, True),
        ({"done": 3}, {"done": 2}, False),
        ({"done": 3}, {}, False),
        ({"total": 8, "free": 8}, {"counts": {"total": 8, "free": 8, "more": 1}}, True),
        ({"total": 8, "free": 8}, {"counts": {"total": 8, "free": 7}}, False),
        ({"total": 8}, {"counts": {"free": 8}}, False),
        # Beside `counts`, what stands outside of it is not one.
        ({"done": 3}, {"done": 3, "counts": {}}, False),
        ({}, {"counts": {"done": 7}}, True),
    ],
)
def test_numbers_by_name(counts, values, passes):
    step = {"map_each": {**MAP, "count": 3}, "expect": {"counts": counts}}
    assert one(step, values=values).passed is passes


def test_a_wrong_number_in_words():
    check = one({"map_each": {**MAP, "count": 3}, "expect": {"counts": {"done": 3}}}, values={"done": 2})
    assert check.message == "expected done 3, observed done 2"
    check = one({"map_each": {**MAP, "count": 3}, "expect": {"counts": {"done": 3}}})
    assert check.message == "expected done 3, observed no word on it"


def test_numbers_are_looked_at_beside_an_error():
    step = {"map_each": {**MAP, "count": 9}, "expect": {"error": "TooManyMappings", "counts": {"done": 4}}}
    assert one(step, error="TooManyMappings", values={"done": 4}).passed
    assert not one(step, error="TooManyMappings", values={"done": 5}).passed


# ---- nodes


@pytest.mark.parametrize(
    ("found", "passes"), [([1], True), ([0, 1], False), ([], False), ([0], False), (None, False), (1, False)]
)
def test_the_nodes_of_pages(found, passes):
    values = {} if found is None else {"nodes": found, "absent": 0}
    assert one({"nodes": {"buffer": "b"}, "expect": {"nodes": [1]}}, values=values).passed is passes


# ---- translation in parts


@pytest.mark.parametrize(
    ("present", "absent", "passes"), [(3, 1, True), (4, 0, False), (0, 4, False), (0, 0, False), (1, 1, True)]
)
def test_some_pages_are_translated_and_others_not(present, absent, passes):
    values = {"present": present, "absent": absent, "contiguous": True}
    step = {"translate": {"buffer": "b"}, "expect": {"translation": "partial"}}
    assert one(step, values=values).passed is passes
    exact = {**step, "expect": {"translation": "partial", "counts": {"present": 3, "absent": 1}}}
    assert one(exact, values=values).passed is ((present, absent) == (3, 1))


# ---- alignment


@pytest.mark.parametrize(("iova", "passes"), [(2 * MIB, True), (6 * MIB, True), (MIB, False), (2 * MIB + 4096, False)])
def test_mapped_memory_is_at_a_multiple_of_2_mib(iova, passes):
    check = one({"map": MAP}, values={"iova": iova}, returns=iova)
    assert check.passed is passes
    if iova == MIB:
        assert check.message == "expected an IOVA that is a multiple of 0x200000, observed the IOVA 0x100000"


@pytest.mark.parametrize(
    ("align", "iova", "passes"),
    [(4096, 4096, True), (8192, 4096, False), (4 * MIB, 4 * MIB, True), (4 * MIB, 2 * MIB, False), (64, 128, True)],
)
def test_allocated_memory_is_aligned_as_asked_for(align, iova, passes):
    step = {"alloc": {"as": "a", "size": 64, "align": align}}
    assert one(step, values={"iova": iova}).passed is passes


def test_the_librarys_iovas_must_be_aligned_as_well():
    known = {"defect": "D4", "expect": {"returns": "nonzero"}}
    step = {"map": MAP, "expect": {"error": "AlreadyMapped", "returns": 0}, "libusdm": known}
    assert one(step, values={"iova": 4 * MIB}, returns=4 * MIB, libusdm="26.08").passed
    assert not one(step, values={"iova": 3 * MIB}, returns=3 * MIB, libusdm="26.08").passed


@pytest.mark.parametrize(
    ("step", "fields"),
    [
        # an alignment that is none is refused, and then there is no IOVA to look at
        (
            {"alloc": {"as": "a", "size": 64, "align": 0}, "expect": {"error": "BadAlignment"}},
            {"error": "BadAlignment"},
        ),
        ({"alloc": {"as": "a", "size": 64, "align": 0}}, {"values": {"iova": 4096}}),
        ({"map": MAP, "expect": {"error": "TooLarge"}}, {"error": "TooLarge"}),
        ({"map": MAP}, {"values": {"iova": True}}),
        # a device's own mapping can be anywhere
        (
            {"container_map": {"device": "e", **MAP, "iova": 4096, "access": "read"}},
            {"values": {"iova": 4096}},
        ),
    ],
)
def test_nothing_is_said_of_iovas_that_need_no_alignment(step, fields):
    assert one(step, **fields).passed
