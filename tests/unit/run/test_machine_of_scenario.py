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
    ("address", "buses"),
    [("00:05.0", 4), ("01:00.0", 4), ("04:00.0", 4), ("05:00.0", 8), ("08:00.0", 8), ("09:00.0", 4), ("fe:00.0", 4)],
)
def test_a_machine_has_four_ports_or_eight(tmp_path: Path, address: str, buses: int) -> None:
    """Two templates are enough for wherever a device is."""
    spec = machine_spec(scenario_at(tmp_path, address))
    assert spec == MachineSpec(devices=(DeviceSpec("edu0", "edu", address),), buses=buses)


def test_devices_on_many_buses_need_eight_ports(tmp_path: Path) -> None:
    more = "".join(f'e{bus}: {{model: edu, at: "{bus:02x}:00.0"}}, ' for bus in (2, 0x3D, 0x6B, 0xB1))
    file = tmp_path / "one.yaml"
    file.write_text(PLAIN.read_text().replace("devices: {", f"devices: {{{more}").replace('02:00.0"}}', 'e8:00.0"}}'))
    spec = machine_spec(load_scenario(file))
    assert spec.buses == 8
    assert sorted(spec.port_of.values()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("address", "anywhere"), [("3d:00.0", False), ("3d:00.1", False), ("02:01.0", True), ("00:05.2", False)]
)
def test_the_kernel_looks_for_functions_everywhere_only_where_it_must(
    tmp_path: Path, address: str, anywhere: bool
) -> None:
    assert machine_spec(scenario_at(tmp_path, address)).any_function is anywhere


def test_guests_are_clones_unless_they_shall_be_booted() -> None:
    assert RunOptions().start == "clone"
    assert RunOptions(fresh_boot=True).start == "boot"
