"""From a scenario's machine to the one that is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.machine.spec import DeviceSpec, MachineSpec
from harness.paths import scenarios_dir
from harness.run.cells import machine_spec
from harness.run.options import RunOptions
from harness.scenario import Scenario, load_scenario

PLAIN = scenarios_dir() / "dma" / "unmapped_read.yaml"


def scenario_at(tmp_path: Path, address: str) -> Scenario:
    file = tmp_path / "one.yaml"
    file.write_text(PLAIN.read_text().replace("02:00.0", address))
    return load_scenario(file)


@pytest.mark.parametrize(
    ("address", "buses"), [("00:05.0", 4), ("01:00.0", 4), ("04:00.0", 4), ("05:00.0", 8), ("08:00.0", 8)]
)
def test_a_machine_has_four_ports_or_eight(tmp_path: Path, address: str, buses: int) -> None:
    """Two templates are enough for wherever a device is."""
    spec = machine_spec(scenario_at(tmp_path, address))
    assert spec == MachineSpec(devices=(DeviceSpec("edu0", "edu", address),), buses=buses)


def test_guests_are_clones_unless_they_shall_be_booted() -> None:
    assert RunOptions().start == "clone"
    assert RunOptions(fresh_boot=True).start == "boot"
