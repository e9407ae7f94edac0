"""Lint of the steps about what a device does, and does wrong."""

from __future__ import annotations

import pytest
from scenario_said import FILE, problems_of

from harness.scenario import parse_scenario

HEAD = """\
title: t
source: s
machine:
  devices:
    q: {model: qat, at: "02:00.0"}
    other: {model: qat_vf, at: "03:00.0"}
    e: {model: edu, at: "04:00.0"}
    high: {model: edu, at: "20:00.0"}
    pf: {model: nvme, at: "05:00.0", vfs: 4}
    one: {model: edu, at: "06:00.0"}
    two: {model: edu, at: "06:01.0"}
steps:
  - open: {device: q}
  - open: {device: other}
  - open: {device: e}
"""
FIRST = 16  # the line of the first step behind those
LOAD = "operate: {device: q, op: load, source: [{iova: 0x1000, size: 8}]}"
NOP = "operate: {device: q, op: nop}"
HANDED = LOAD.replace("}]}", "}], wait: false}")
HOLD = "misbehave: {device: q, how: hold}"
STALE = "misbehave: {device: q, how: stale_address}"
NEXT = "misbehave: {device: q, how: next_page}"
LATE = "collect: {device: q, seconds: 1}\n    expect: {error: DmaTimeout}"
THROUGH = "misbehave: {device: q, how: wrong_requester, through: %s}"


def text(*steps: str) -> str:
    return HEAD + "".join(f"  - {step}\n" for step in steps)


@pytest.mark.parametrize(
    "steps",
    [
        [HOLD, HANDED, "unmap: {address: 0x1000, size: 4K}", "resume: {device: q}", "collect: {device: q}"],
        [LOAD, STALE, LOAD],
        [THROUGH % "other", LOAD],
        ["misbehave: {device: q, how: stop_answering}", LOAD, "reset: {device: q}", LOAD],
        [HOLD, HANDED, "vanish: {device: q}", "collect: {device: q}", "surprise_removal: {device: q}"],
        ["surprise_removal: {device: q, keep: true}", "close: {device: q}"],
        ["surprise_removal: {device: e}"],
        ["close: {device: e}", "surprise_removal: {device: e}"],
        [HANDED, HANDED, "collect: {device: q, count: 2}"],
        ["reset: {device: e}"],
        [HOLD, NOP],
        [f"{HOLD[:-1]}, times: 2}}", NOP, HANDED, "resume: {device: q}", "collect: {device: q}"],
        [f"{HOLD[:-1]}, times: 2}}", HANDED, HANDED, *["resume: {device: q}"] * 2, "collect: {device: q, count: 2}"],
        [HANDED, HOLD, HANDED, "collect: {device: q}", "resume: {device: q}", "collect: {device: q}"],
        [HOLD, HANDED, LATE],
        [NEXT, STALE.replace("stale_address", "delay, milliseconds: 1"), LOAD, LOAD],
    ],
)
def test_what_makes_sense(steps: list[str]) -> None:
    parse_scenario(text(*steps), FILE)


@pytest.mark.parametrize(
    ("steps", "place", "message", "hint"),
    [
        (
            ["misbehave: {device: e, how: next_page}"],
            "0:e,",
            "a qat for misbehave, found 'e', model: edu",
            "model: qat",
        ),
        (["vanish: {device: e}"], "0:e}", "expected a qat for vanish, found 'e', model: edu", "model: qat"),
        ([THROUGH % "e", LOAD], "0:e}", "expected another qat of the machine, found 'e'", "these are: other"),
        ([THROUGH % "q", LOAD], "0:q}", "expected another qat of the machine, found the device itself", "other"),
        ([THROUGH % "none", LOAD], "0:none", "expected another qat of the machine, found 'none'", "other"),
        ([STALE, LOAD], "0:stale_address", "expected an earlier request of the device, found none", "shall be stale"),
        (["resume: {device: q}"], "0:resume", "expected a request that is held, found none", "how: hold"),
        (
            [HOLD, "resume: {device: q}", HANDED],
            "1:resume",
            "expected a request that is held, found none",
            "wait: false",
        ),
        ([HOLD, NOP, "resume: {device: q}"], "2:resume", "expected a request that is held, found none", "how: hold"),
        ([HOLD, HANDED, NOP], "2:operate", "expected no step that waits for a request that is held", "collect"),
        ([NOP, STALE, LOAD], "1:stale_address", "expected an earlier request of the device, found none", "stale"),
        ([HOLD, LOAD], "1:operate", "expected no step that waits for a request that is held, found one", "never end"),
        ([HOLD, HANDED, LOAD], "2:operate", "expected no step that waits for a request that is held", "collect"),
        (
            [HOLD, HANDED, "collect: {device: q}"],
            "2:collect",
            "expected no step that waits for a request that",
            "resume",
        ),
        (
            [HANDED, HOLD, HANDED, HANDED, "collect: {device: q, count: 2}"],
            "4:collect",
            "expected no step that waits for a request that is held",
            "resume",
        ),
        (
            [f"{HOLD[:-1]}, times: 2}}", HANDED, HANDED, "resume: {device: q}", "collect: {device: q, count: 2}"],
            "4:collect",
            "expected no step that waits for a request that is held",
            "resume",
        ),
        ([NEXT, NEXT, LOAD], "1:misbehave", "expected a request behind it, found none", "write an operate"),
        (
            [f"{NEXT[:-1]}, times: 5}}", LOAD, LOAD],
            "0:misbehave",
            "expected 3 more requests behind it, found none",
            "write an operate",
        ),
        ([HOLD], "0:misbehave", "expected a request behind it, found none", "write an operate"),
        (
            [HOLD, "reset: {device: q}"],
            "0:misbehave",
            "expected a request before the device is reset",
            "reset resets it",
        ),
        (["collect: {device: q}"], "0:{device", "expected 1 operate with wait: false before it, found 0", "to collect"),
        ([HANDED, "collect: {device: q, count: 2}"], "1:2}", "expected 2 operate with wait: false", "to collect"),
        (
            [HANDED, "reset: {device: q}", "collect: {device: q}"],
            "2:{device",
            "expected 1 operate with wait",
            "to collect",
        ),
        (
            ["vanish: {device: q}", "close: {device: q}"],
            "1:q}",
            "expected no close of a device that has vanished",
            "waits",
        ),
        (["vanish: {device: q}", "reset: {device: q}"], "1:q}", "expected no reset of a device that has", "removal"),
        (["vanish: {device: q}", "vanish: {device: q}"], "1:q}", "expected a device that is still there", "gone"),
        (
            ["surprise_removal: {device: high}"],
            "0:high",
            "expected a device on the buses 01 to 08, found 'high'",
            "slots",
        ),
        (["surprise_removal: {device: pf}"], "0:pf", "expected a device without VFs, found 'pf'", "takes its VFs"),
        (
            ["surprise_removal: {device: one}"],
            "0:one",
            "expected a device that is alone on its bus, found 'one'",
            "with",
        ),
        (
            ["fork: {steps: [{vanish: {device: q}}]}"],
            "0:vanish",
            "expected no vanish inside another step, found one",
            "nothing in the guest does it",
        ),
        (
            ["misbehave: {device: q, how: delay}"],
            "0:{device",
            "expected milliseconds with how: delay",
            "milliseconds: 50",
        ),
        (
            ["misbehave: {device: q, how: wrong_requester}"],
            "0:{device",
            "expected through with how: wrong",
            "another qat",
        ),
        (["misbehave: {device: q, how: dance}"], "0:dance", "found 'dance'", ""),
        ([f"{LOAD[:-1]}, seconds: 0}}"], "0:0}", "a number of at least 0.1", ""),
    ],
)
def test_what_makes_none(steps: list[str], place: str, message: str, hint: str) -> None:
    whole = text(*steps)
    (found,) = problems_of(whole)
    step, _, word = place.partition(":")
    assert found.line == FIRST + int(step)
    assert whole.splitlines()[found.line - 1][found.column - 1 :].startswith(word), found
    assert message in found.message
    assert hint in str(found.hint)


def test_a_step_with_a_mistake_is_told_of_once() -> None:
    (found,) = problems_of(text(HOLD, LOAD.replace("load", "sing")))
    assert found.line == FIRST + 1


def test_an_unknown_device_is_told_of_once() -> None:
    (found,) = problems_of(text("vanish: {device: nobody}"))
    assert "expected a device of the machine, found 'nobody'" in found.message
