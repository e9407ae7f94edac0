"""What a qat says of its requests, against what is expected."""

from __future__ import annotations

from typing import Any

import pytest
from test_judge_steps import checks, seen

PIECE = {"buffer": "a", "size": 16}
NUMBER = {"iova": 0x1000, "size": 16}
DONE = {"status": "done", "result": 16, "unasked": 0}


def judged(args: dict[str, Any], expect: dict[str, Any], values: dict[str, Any], kind: str = "operate") -> Any:
    step: dict[str, Any] = {kind: {"device": "edu0", **args}}
    if expect:
        step["expect"] = expect
    (check,) = checks([step], [seen(0, kind, values=values)])
    return check


COPY = {"op": "copy", "source": [PIECE], "destination": [NUMBER]}


def test_done_is_the_default() -> None:
    assert judged(COPY, {}, DONE).passed
    check = judged(COPY, {}, {"status": "read_refused", "refused": 0x900000, "unasked": 0})
    assert not check.passed
    assert 'expected the status "done", observed the status "read_refused" of 9437184 (0x900000)' in check.message
    assert "because of SIZE" in judged(COPY, {}, {"status": "invalid", "reason": "SIZE", "unasked": 0}).message


@pytest.mark.parametrize("status", ["read_refused", "write_refused", "invalid"])
def test_another_status_must_be_expected(status: str) -> None:
    values = {**DONE, "status": status}
    assert judged(COPY, {"status": status}, values).passed
    assert not judged(COPY, {"status": status}, DONE).passed
    assert not judged(COPY, {}, values).passed


def test_a_step_that_said_nothing_fails() -> None:
    for missing in ("status", "unasked"):
        assert not judged(COPY, {}, {name: one for name, one in DONE.items() if name != missing}).passed


def test_a_response_too_many_fails_where_it_is_not_named() -> None:
    values = {**DONE, "unasked": 1}
    assert not judged(COPY, {}, values).passed
    assert judged(COPY, {"counts": {"unasked": 1}}, values).passed
    assert not judged(COPY, {"counts": {"unasked": 1}}, DONE).passed


def test_numbers_that_are_expected() -> None:
    values = {**DONE, "status": "read_refused", "refused": 0x900000, "refused_at": 0}
    assert judged(COPY, {"status": "read_refused", "counts": {"refused": 0x900000, "refused_at": 0}}, values).passed
    assert not judged(COPY, {"status": "read_refused", "counts": {"refused": 0x901000}}, values).passed


def test_a_request_that_was_only_handed_over_is_not_judged() -> None:
    assert judged({**COPY, "wait": False}, {}, {}).passed


CRC = {"op": "crc32", "source": [PIECE]}
COMPARE = {"op": "compare", "source": [PIECE], "destination": [PIECE]}


def test_the_program_must_find_what_the_device_found() -> None:
    assert judged(CRC, {}, {**DONE, "equal": True, "agrees": True}).passed
    for values in (DONE, {**DONE, "equal": False, "agrees": False}, {**DONE, "equal": True}):
        assert not judged(CRC, {}, values).passed, "without a word of the program it is not known to be right"
    assert judged({"op": "crc32", "source": [NUMBER]}, {}, DONE).passed, "nobody knows what is there"


def test_a_comparison() -> None:
    same = {**DONE, "equal": True, "agrees": True}
    other = {**DONE, "equal": False, "agrees": True, "first_difference": 5}
    assert judged(COMPARE, {}, same).passed
    assert not judged(COMPARE, {}, other).passed
    assert judged(COMPARE, {"equal": False}, other).passed
    assert not judged(COMPARE, {"equal": False}, same).passed
    assert not judged(COMPARE, {"equal": False}, {**other, "agrees": False}).passed
    refused = {**DONE, "status": "read_refused", "refused": 1}
    assert judged(COMPARE, {"status": "read_refused"}, refused).passed


def test_all_collected_responses_have_the_status() -> None:
    def collected(*statuses: str) -> dict[str, Any]:
        return {"statuses": list(statuses), "unasked": 0}

    assert judged({"count": 2}, {}, collected("done", "done"), "collect").passed
    assert not judged({"count": 2}, {}, collected("done", "invalid"), "collect").passed
    assert judged({"count": 1}, {"status": "invalid"}, collected("invalid"), "collect").passed
    assert not judged({"count": 1}, {}, collected(), "collect").passed
    assert not judged({"count": 1}, {}, {"unasked": 0}, "collect").passed
    assert not judged({"count": 1}, {}, {**collected("done"), "unasked": 1}, "collect").passed
