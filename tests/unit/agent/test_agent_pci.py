from __future__ import annotations

from pathlib import Path

import pytest

from harness.agent import pci


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    """A folder like /sys/bus/pci with one function."""
    for name in ("devices/0000:02:00.0", "drivers/other", "drivers/vfio-pci"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "devices/0000:02:00.0/driver_override").touch()
    (tmp_path / "drivers/other/unbind").touch()
    (tmp_path / "drivers_probe").touch()
    return tmp_path


def test_a_free_function_is_bound(bus: Path) -> None:
    pci.bind("02:00.0", str(bus))
    assert (bus / "devices/0000:02:00.0/driver_override").read_text() == "vfio-pci"
    assert (bus / "drivers_probe").read_text() == "0000:02:00.0"
    assert (bus / "drivers/other/unbind").read_text() == ""


def test_a_function_of_another_driver_is_taken_from_it(bus: Path) -> None:
    (bus / "devices/0000:02:00.0/driver").symlink_to("../../drivers/other")
    assert pci.driver_of("02:00.0", str(bus)) == "other"
    pci.bind("02:00.0", str(bus))
    assert (bus / "drivers/other/unbind").read_text() == "0000:02:00.0"
    assert (bus / "drivers_probe").read_text() == "0000:02:00.0"


def test_a_bound_function_is_left_alone(bus: Path) -> None:
    (bus / "devices/0000:02:00.0/driver").symlink_to("../../drivers/vfio-pci")
    pci.bind("02:00.0", str(bus))
    assert (bus / "drivers_probe").read_text() == ""


def test_a_refusal_is_left_to_the_open_that_follows(bus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pci.bind("07:00.0", str(bus))
    assert "0000:07:00.0: not bound to vfio-pci" in capsys.readouterr().err
