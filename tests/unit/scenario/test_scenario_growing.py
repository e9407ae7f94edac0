"""Steps of a test in Python: what a program of somebody else may do with a device, the lint does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.scenario.growing import Growing

QAT = {"model": "qat", "at": "02:00.0"}
DATA = {"title": "t", "source": "s", "machine": {"devices": {"q": QAT, "other": {**QAT, "at": "03:00.0"}}}}
HOLD = {"misbehave": {"device": "q", "how": "hold"}}
LOAD = {"operate": {"device": "q", "op": "load", "source": ({"iova": 4096, "size": 8},)}}


def said(*steps: dict[str, Any]) -> list[str]:
    growing = Growing(DATA, Path("t"))
    return [problem.message for step in steps for problem in growing.step(step)[1]]


@pytest.mark.parametrize(
    "step",
    [
        HOLD,
        {"misbehave": {"device": "q", "how": "stale_address"}},
        {"misbehave": {"device": "q", "how": "wrong_requester", "through": "other"}},
        {"resume": {"device": "q"}},
    ],
)
def test_misbehaviour_is_planned_for_a_program_of_somebody_else(step: dict[str, Any]) -> None:
    assert said(step) == []


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([LOAD], "expected an open device, found 'q'"),
        ([{"open": {"device": "q"}}, {"resume": {"device": "q"}}], "expected a request that is held, found none"),
        ([{"open": {"device": "q"}}, HOLD, LOAD], "expected no step that waits for a request that is held, found one"),
        ([{"vanish": {"device": "q"}}, HOLD], "expected a device that is still there, found 'q'"),
        ([{"misbehave": {"device": "q", "how": "wrong_requester", "through": "q"}}], "found the device itself"),
    ],
)
def test_what_is_known_is_still_said(steps: list[dict[str, Any]], message: str) -> None:
    (found,) = said(*steps)
    assert message in found
