"""What a QAT-like device can copy, as the check of a file knows it."""

from __future__ import annotations

import pytest

from harness.device.process import MODELS
from harness.device.qat import layout
from harness.machine.spec import SERVED
from harness.scenario import Scenario, ScenarioError, parse_scenario
from harness.scenario.engines import QAT_BUFFERS, QAT_BYTES, QAT_MODELS


def parsed(model: str, place: str, more: str = "") -> Scenario:
    text = (
        f'title: t\nsource: s\nmachine: {{devices: {{q: {{model: {model}, at: "02:00.1"{more}}}}}}}\n'
        f"steps:\n  - register: {{device: q}}\n  - dma_write: {{device: q, iova: 0x900000, {place}}}\n"
    )
    found = parse_scenario(text, "x.yaml")
    assert isinstance(found, Scenario)
    return found


@pytest.mark.parametrize("model", ["qat", "qat_vf"])
@pytest.mark.parametrize("place", ["size: 1", "size: 16M", "size: 8M, device_offset: 8M", "size: 3, device_offset: 5"])
def test_any_byte_of_its_own_can_be_copied(model: str, place: str):
    assert parsed(model, place).steps[1].kind == "dma_write"


@pytest.mark.parametrize("model", ["qat", "qat_vf"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("size: 0", "expected a DMA size from 1 to 16M, found 0"),
        ("size: 17M", "expected a DMA size from 1 to 16M, found 17825792"),
        ("size: 1, device_offset: 16M", "expected device_offset \\+ size of at most 16777216, found 16777216 \\+ 1"),
    ],
)
def test_what_is_not_its_own_is_refused(model: str, place: str, message: str):
    with pytest.raises(ScenarioError, match=f"x.yaml:6:[0-9]+: {message}"):
        parsed(model, place)


def test_it_has_no_vfs_of_its_own():
    with pytest.raises(ScenarioError, match="expected VFs of an nvme only, found vfs beside model: qat"):
        parsed("qat", "size: 1", ", vfs: 3")


def test_the_device_has_what_the_check_says():
    assert QAT_BYTES == layout.LOCAL_BYTES == layout.LONGEST_VALUE
    assert QAT_BUFFERS == layout.MOST_BUFFERS


def test_the_models_that_a_process_serves_are_those_of_the_machine_and_of_the_check():
    assert tuple(MODELS) == SERVED == QAT_MODELS
