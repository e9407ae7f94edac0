"""The script that a guest leaves to start its machine by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.machine.argv import Boot, Ram
from harness.machine.builds import QemuBuild
from harness.machine.emulator import Emulator
from harness.machine.probe import Capabilities
from harness.machine.spec import DeviceSpec, MachineSpec


def test_the_script_of_a_clone_boots_its_machine_without_the_template(tmp_path: Path):
    build = QemuBuild("none", "0", "k", ("false",), {}, None)
    found = Capabilities(
        "pc-q35-11.1", True, {"intel-iommu": frozenset({"intremap", "caching-mode", "aw-bits"})}, frozenset()
    )
    spec = MachineSpec(devices=(DeviceSpec("edu0", "edu", "02:00.0"),))
    boot = Boot(Path("/k/vmlinux"), Path("/k/initrd.img"), "key")
    ram = Ram(tmp_path / "template" / "ram", private=True)
    with pytest.raises(HarnessError):
        Emulator.start(spec, boot, build, found, "tcg", tmp_path, Deadline.after(20), ram=ram, incoming=True)
    script = (tmp_path / "qemu.sh").read_text()
    assert "edu0" in script
    assert "/k/vmlinux" in script
    for word in ("-incoming", "-S ", "memory-backend", "template"):
        assert word not in script
