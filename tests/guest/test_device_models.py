"""The device of docs/device-models.md in a real QEMU without a guest system: the document's own code and command."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.bare import argv
from harness.bare.devices import poll
from harness.bare.machine import BareMachine
from harness.bare.process import BareEmulator
from harness.bare.spec import BareDeviceSpec
from harness.deadline import Deadline
from harness.machine.probe import Capabilities
from harness.run.bare import bare_spec
from harness.run.options import RunOptions
from harness.run.resources import prepare
from harness.scenario import BareScenario, parse_scenario
from harness.scenario.args import Args
from harness.scenario.bare_args import Enable

ROOT = Path(__file__).parents[2]
ADDRESS, SIZE, STATUS, SUM, GO = 0x00, 0x08, 0x0C, 0x10, 0x18
BUSY, DONE, REFUSED = 1, 2, 3
MSIX_TABLE, MSIX, DEVICE_CONTROL = 0x1000, 0x7C, 0x48
# Where the buffer and what the interrupt writes are, and the IOVAs of both: interrupts are writes through the IOMMU.
BUFFER, MESSAGE, IOVA = 0x200000, 0x300000, 0x40_0000_0000
SCENARIO = f"""
tier: bare
title: The device of the document
source: docs/device-models.md
machine: {{devices: {{sum0: {{model: pci_testdev, at: "02:00.3"}}}}}}
tables:
  domains: {{d: {{pages: [{{iova: {IOVA:#x}, to: {BUFFER:#x}, size: 64K}}, {{iova: {MESSAGE:#x}, to: {MESSAGE:#x}}}]}}}}
  contexts: {{sum0: {{domain: d}}}}
steps: [{{enable: {{}}}}]
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The device's process, and the argument for QEMU that it has printed."""
    text = (ROOT / "docs" / "device-models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "summer.py").write_text(code)
    words = [sys.executable, "-m", "harness.device", "summer.py:Summer", "--socket", "s"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(shlex.split(process.stdout.readline())[-1])
        finally:
            process.kill()


class Driver:
    """What drives the device."""

    def __init__(self, machine: BareMachine, device: BareDeviceSpec) -> None:
        self.qtest = machine._qtest
        self.pci = machine._pci
        self.device = device
        self.bar = self.pci.bar(device)

    def sum(self, address: int, size: int) -> tuple[int, int]:
        """STATUS and SUM of a run; waits for the interrupt where there is one."""
        self.qtest.write64(self.bar + ADDRESS, address)
        self.qtest.write32(self.bar + SIZE, size)
        self.qtest.write32(self.bar + GO, 1)
        poll(self.qtest, lambda: self.status != BUSY, "the sum")
        return self.status, self.qtest.read64(self.bar + SUM)

    @property
    def status(self) -> int:
        return self.qtest.read32(self.bar + STATUS)


def test_the_documents_device_works_in_qemu(
    served: tuple[subprocess.Popen[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, argument = served
    iommu = argv._iommu

    def device(spec: BareDeviceSpec, number: int, capabilities: Capabilities) -> list[str]:
        return ["-device", json.dumps(argument | {"bus": "port2", "addr": f"{spec.slot:x}.{spec.function:x}"})]

    monkeypatch.setattr(argv, "_device", device)
    monkeypatch.setattr(argv, "_iommu", lambda *words: iommu(*words) | {"caching-mode": True})
    scenario = parse_scenario(SCENARIO, Path("summer.yaml"))
    assert isinstance(scenario, BareScenario)
    spec = bare_spec(scenario.machine)
    emulation = prepare(RunOptions(qemu=("11.1",), fetch=True), print, guests=False).emulations["11.1"]
    folder = tmp_path / "run"
    folder.mkdir()
    emulator = BareEmulator.start(spec, emulation.build, emulation.capabilities, folder, Deadline.after(60))
    try:
        machine = BareMachine(emulator.qtest, spec, scenario.tables)
        driver = Driver(machine, spec.devices[0])
        qtest, bar = driver.qtest, driver.bar
        data = bytes(number * 7 % 256 for number in range(60_000))
        qtest.write(BUFFER, data)

        # Not translated: bus addresses are physical ones.
        assert driver.pci.read32(driver.device.source_id, 0) == 0x10F0_1AF4
        assert driver.sum(BUFFER + 1, 50_000) == (DONE, sum(data[1:50_001]))
        assert qtest.read32(MESSAGE) == 0, "interrupts are off"

        # An interrupt is a write to the address that the driver has put into the table.
        for at, word in enumerate((MESSAGE, 0, 0xCAFE, 0)):
            qtest.write32(bar + MSIX_TABLE + 4 * at, word)
        config = driver.pci.read32(driver.device.source_id, MSIX)
        assert (config & 0xFF, config >> 16) == (0x11, 0)
        driver.pci.write32(driver.device.source_id, MSIX, config | 0x8000_0000)
        assert driver.sum(BUFFER, 10) == (DONE, sum(data[:10]))
        poll(qtest, lambda: qtest.read32(MESSAGE) == 0xCAFE, "the interrupt")

        # Translated.
        machine.run("enable", Enable())
        assert driver.sum(IOVA + 5, 50_000) == (DONE, sum(data[5:50_005]))
        assert not machine.fault_values()["recorded"]
        assert driver.sum(IOVA + 0xF000, 0x1800) == (REFUSED, IOVA + 0x10000)
        fault = machine.fault_values()
        assert (fault["source_id"], fault["reason"], fault["read"]) == (driver.device.source_id, 6, True)
        machine.run("disable", Args())

        # A Function Level Reset.
        control = driver.pci.read32(driver.device.source_id, DEVICE_CONTROL)
        driver.pci.write32(driver.device.source_id, DEVICE_CONTROL, control | 1 << 15)
        assert (qtest.read64(bar + ADDRESS), driver.status) == (0, 0)

        # The process ends, and QEMU goes on.
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert driver.status == 0xFFFF_FFFF
        assert qtest.read(BUFFER, 8) == data[:8]
    finally:
        emulator.stop()
    assert not (tmp_path / "s").exists()
