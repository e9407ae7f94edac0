"""Devices that are there, are taken away, and go by themselves, with made-up evidence."""

from __future__ import annotations

import pytest

from harness.judge.device_presence import check_presence
from harness.results import DeviceNews, Evidence, StepEvidence

DEVICES = {"qat0": "02:00.0", "vf": "0000:02:00.1", "other": "03:00.0"}


def step(index: int, kind: str = "fill", device: str = "qat0", **news) -> StepEvidence:
    devices = {"qat0": DeviceNews(**{"connected": True, **news})}
    return StepEvidence(index=index, kind=kind, args={"device": device}, devices=devices)


def observed(*steps: StepEvidence) -> str:
    (check,) = check_presence(Evidence(steps=steps, devices=DEVICES))
    assert check.name == "device qat0: presence"
    return "" if check.passed else check.observed


def test_there_throughout():
    assert observed(step(0), step(1)) == ""
    assert not list(check_presence(Evidence(steps=(StepEvidence(index=0, kind="fill", args={}),))))


@pytest.mark.parametrize(("kind", "device"), [("vanish", "qat0"), ("surprise_removal", "qat0")])
def test_taken_away(kind: str, device: str):
    lost = {"connected": False, "complaints": ("the client closed the connection",)}
    assert observed(step(0), step(1, kind, device, **lost), step(2, **lost)) == ""
    assert "after step 0 (fill)" in observed(step(0, **lost), step(1, kind, device, **lost))


def test_another_device_is_taken_away():
    lost = {"connected": False}
    assert "not connected any more" in observed(step(0, "vanish", "other"), step(1, **lost))
    assert "not connected any more" in observed(step(0, "surprise_removal", "other", **lost))
    assert observed(step(0, "surprise_removal", "vf", **lost)) == "", "both are on one card"
    assert "not connected any more" in observed(step(0, "vanish", "vf", **lost))


def test_a_client_that_was_turned_away():
    assert observed(step(0), step(1, complaints=("another client is connected",))) == (
        "after step 1 (fill): the server says: another client is connected"
    )


def test_a_model_that_fails():
    failed = {"failure": "ZeroDivisionError('x')"}
    assert observed(step(0), step(1, **failed), step(2, **failed)) == (
        "after step 1 (fill): its model failed: ZeroDivisionError('x')"
    )
    assert "its model failed" in observed(step(0, "vanish", connected=False, **failed))
