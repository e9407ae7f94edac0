"""A card pulled out of its slot while the guest runs, and nobody is asked before.

QEMU's ``device_del`` presses the attention button of a hot-plug slot: the guest is asked, and may take its time. But
when the power of a slot is cut while its indicator is off, QEMU takes the card out at once: presence and link are gone,
and the port's interrupt says that they have changed (PCI Express Base Specification 4.0, 6.7.1), as when a card is
pulled. So the power is cut here from outside, in the port's Slot Control register, while the guest stands still; and
switched on again, because the guest looks whether it had switched it off itself. The monitor reaches a register through
the machine's I/O ports only (PCI Local Bus Specification 3.0, 3.2.2.3.2).
"""

from __future__ import annotations

import re
from typing import Final

from harness.deadline import Deadline
from harness.errors import InfrastructureError
from harness.machine.emulator import Emulator
from harness.machine.slots import port_address
from harness.machine.spec import SERVED, MachineSpec

_ADDRESS, _DATA = 0xCF8, 0xCFC
_ENABLE: Final = 1 << 31
_CAPABILITIES, _PCI_EXPRESS = 0x34, 0x10
_MOST_CAPABILITIES: Final = 48
_SLOT_CONTROL, _SLOT_STATUS = 0x18, 0x1A  # in the PCI Express capability
_INDICATOR_OFF, _POWER_OFF = 3 << 8, 1 << 10
_PRESENT: Final = 1 << 6
_SIZES: Final = {1: "b", 2: "h", 4: "w"}  # as the monitor calls them
_ANSWER: Final = re.compile(r"= (?:0x)?([0-9a-f]+)")


def pull_out(emulator: Emulator, spec: MachineSpec, bus: int, deadline: Deadline) -> None:
    """Pull the card out that has a bus behind a hot-plug port; its functions are gone when this returns.

    Args:
        emulator: QEMU, with the guest running.
        spec: its machine.
        bus: one of ``spec.hot_plug``.
        deadline: until when it must be done.

    Raises:
        InfrastructureError: QEMU refused, or there is no card in the slot.
        TimeoutError: no answer before the deadline.
    """
    emulator.execute("stop", deadline=deadline)
    try:
        for device in sorted(spec.devices, key=lambda one: one.bdf, reverse=True):
            if device.bdf[0] == bus and device.model in SERVED:
                _detach(emulator, device.name, deadline)
        _cut_power(_IoPorts(emulator, deadline), port_address(spec, spec.port_of[bus]))
    finally:
        emulator.execute("cont", deadline=deadline)


def _detach(emulator: Emulator, name: str, deadline: Deadline) -> None:
    """Take a served function off its bus, and keep QEMU's object of it.

    QEMU 11.1 fails an assertion (``memory_region_del_subregion``) when it frees a vfio-user-pci that has MSI-X, so it
    must not be there any more when the slot loses its power. Its server must have gone before: its DMA would be done.
    """
    if emulator.devices is not None:
        emulator.devices.ask("vanish", name, deadline)
    arguments: dict[str, object] = {"path": f"/machine/peripheral/{name}", "property": "realized", "value": False}
    emulator.execute("qom-set", arguments, deadline=deadline)


def _cut_power(ports: _IoPorts, port: str) -> None:
    slot, function = (int(part, 16) for part in port.removeprefix("00:").split("."))
    config = _ENABLE | slot << 11 | function << 8
    before = ports.read(_ADDRESS, 4)  # the guest may stand between the two halves of an access of its own

    def place(offset: int) -> int:
        ports.write(_ADDRESS, config | offset & ~3, 4)
        return _DATA + offset % 4

    try:
        at = ports.read(place(_CAPABILITIES), 1)
        for _ in range(_MOST_CAPABILITIES):
            if not at or ports.read(place(at), 1) == _PCI_EXPRESS:
                break
            at = ports.read(place(at + 1 & 0xFF), 1)
        if ports.read(place(at), 1) != _PCI_EXPRESS or not ports.read(place(at + _SLOT_STATUS), 2) & _PRESENT:
            raise InfrastructureError(f"there is no card in the slot of the root port {port}")
        control = ports.read(place(at + _SLOT_CONTROL), 2)
        ports.write(place(at + _SLOT_CONTROL), control | _INDICATOR_OFF | _POWER_OFF, 2)
        ports.write(place(at + _SLOT_CONTROL), control, 2)
        if ports.read(place(at + _SLOT_STATUS), 2) & _PRESENT:
            raise InfrastructureError(f"QEMU left the card in the slot of the root port {port}")
    finally:
        ports.write(_ADDRESS, before, 4)


class _IoPorts:
    """The machine's I/O ports, through the monitor."""

    def __init__(self, emulator: Emulator, deadline: Deadline) -> None:
        self._emulator = emulator
        self._deadline = deadline

    def read(self, port: int, size: int) -> int:
        said = self._monitor(f"i/x{_SIZES[size]} {port:#x}")
        found = _ANSWER.search(said)
        if found is None:
            raise InfrastructureError(f"QEMU's monitor said of the I/O port {port:#x}: {said.strip() or 'nothing'}")
        return int(found[1], 16)

    def write(self, port: int, value: int, size: int) -> None:
        said = self._monitor(f"o/{_SIZES[size]} {port:#x} {value:#x}").strip()
        if said:
            raise InfrastructureError(f"QEMU's monitor said of the I/O port {port:#x}: {said}")

    def _monitor(self, line: str) -> str:
        return str(self._emulator.execute("human-monitor-command", {"command-line": line}, deadline=self._deadline))
