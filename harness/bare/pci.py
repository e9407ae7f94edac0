"""PCI as firmware sets it up: configuration space, bus numbers, BARs, capabilities, message-signalled interrupts.

Names and offsets are those of the PCI Express Base Specification, and for the host bridge those of Intel's 3 Series
chipset that q35 emulates.
"""

from __future__ import annotations

from harness.bare.qtest import Qtest
from harness.bare.spec import BareDeviceSpec, BareSpec
from harness.errors import InfrastructureError

ECAM = 0xB000_0000
"""Where configuration space is in physical memory: 4 KiB for each function."""

_PCIEXBAR = 0x60
_CF8, _CFC = 0xCF8, 0xCFC
_COMMAND, _BUS_NUMBERS, _MEMORY_WINDOW, _CAPABILITIES = 0x04, 0x18, 0x20, 0x34
_BAR0 = 0x10
_MEMORY, _MASTER, _INTX_OFF = 1 << 1, 1 << 2, 1 << 10
_WINDOWS = 0xE000_0000
_WINDOW = 0x0200_0000
_BAR_ROOM = 0x0010_0000
_MSI = 0x05
_SRIOV = 0x0010
_EXTENDED = 0x100
_64_BIT = 0b100


class Pci:
    """The machine's PCI buses.

    Args:
        qtest: the connection.
        spec: the machine.
    """

    def __init__(self, qtest: Qtest, spec: BareSpec) -> None:
        self._qtest = qtest
        self._spec = spec
        self._bars: dict[str, int] = {}

    def set_up(self) -> None:
        """Number the buses, give every device its BAR 0, and let all of them be bus masters.

        Raises:
            InfrastructureError: a device is not where it should be.
        """
        self._qtest.out32(_CF8, 1 << 31 | _PCIEXBAR)
        self._qtest.out32(_CFC, ECAM | 1)
        ports = self._spec.ports
        windows = {0: _WINDOWS}
        for number, (bus, slot) in enumerate(ports.items(), 1):
            windows[bus] = _WINDOWS + number * _WINDOW
            inside = [one for one in self._spec.devices if one.bridge and one.bus == bus + 1]
            self._bridge(slot << 3, 0, bus, bus + bool(inside), windows[bus])
            if inside:
                windows[bus + 1] = windows[bus]
                self._bridge(bus << 8, bus, bus + 1, bus + 1, windows[bus])
        for device in self._spec.devices:
            if device.model == "vf":
                continue
            base = windows[device.bus]
            windows[device.bus] += _BAR_ROOM
            if self.read32(device.source_id, 0) in (0, 0xFFFF_FFFF):
                raise InfrastructureError(f"{device.name} does not answer at its address")
            self._bars[device.name] = base
            if self.read32(device.source_id, _BAR0) & _64_BIT:
                self.write32(device.source_id, _BAR0 + 4, 0)
            self.write32(device.source_id, _BAR0, base)
            self.bus_master(device, enabled=True)
            if device.vfs:
                self._enable_vfs(device, base + _WINDOW // 2)

    def bar(self, device: BareDeviceSpec) -> int:
        """Physical address of a device's BAR 0."""
        return self._bars[device.name]

    def read32(self, source_id: int, offset: int) -> int:
        """Read 32 bits of configuration space."""
        return self._qtest.read32(ECAM + (source_id << 12) + offset)

    def write32(self, source_id: int, offset: int, value: int) -> None:
        """Write 32 bits of configuration space."""
        self._qtest.write32(ECAM + (source_id << 12) + offset, value)

    def bus_master(self, device: BareDeviceSpec, *, enabled: bool) -> None:
        """Let a device access memory, or not."""
        self._qtest.write16(
            ECAM + (device.source_id << 12) + _COMMAND, _MEMORY | _INTX_OFF | (_MASTER if enabled else 0)
        )

    def _bridge(self, source_id: int, primary: int, secondary: int, last: int, window: int) -> None:
        self.write32(source_id, _BUS_NUMBERS, primary | secondary << 8 | last << 16)
        limit = window + _WINDOW - 1
        self.write32(source_id, _MEMORY_WINDOW, (window >> 16 & 0xFFF0) | (limit & 0xFFF0_0000))
        self._qtest.write16(ECAM + (source_id << 12) + _COMMAND, _MEMORY | _MASTER)

    def message(self, device: BareDeviceSpec, address: int, data: int) -> None:
        """Have a device send its MSI as this message.

        Raises:
            InfrastructureError: it has no MSI capability.
        """
        at = self.read32(device.source_id, _CAPABILITIES) & 0xFC
        while at:
            header = self.read32(device.source_id, at)
            if header & 0xFF == _MSI:
                self.write32(device.source_id, at + 4, address & 0xFFFF_FFFC)
                wide = header >> 16 & 1 << 7
                if wide:
                    self.write32(device.source_id, at + 8, address >> 32)
                self._qtest.write16(ECAM + (device.source_id << 12) + at + (12 if wide else 8), data)
                self._qtest.write16(ECAM + (device.source_id << 12) + at + 2, header >> 16 & 0xFFFF | 1)
                return
            at = header >> 8 & 0xFC
        raise InfrastructureError(f"{device.name} has no MSI capability")

    def _enable_vfs(self, device: BareDeviceSpec, base: int) -> None:
        """Switch SR-IOV on: VF n is n requester IDs behind its PF, and has its BAR behind that of the one before."""
        at, header = _EXTENDED, self.read32(device.source_id, _EXTENDED)
        while header & 0xFFFF != _SRIOV:
            at = header >> 20
            if not at:
                raise InfrastructureError(f"{device.name} has no SR-IOV capability")
            header = self.read32(device.source_id, at)
        where = ECAM + (device.source_id << 12) + at
        first_and_stride = self._qtest.read32(where + 0x14)
        if first_and_stride != 0x0001_0001:
            raise InfrastructureError(f"{device.name}: First VF Offset and VF Stride are {first_and_stride:#x}, not 1")
        self._qtest.write32(where + 0x24, 0xFFFF_FFFF)
        size = -(self._qtest.read32(where + 0x24) & ~0xF) & 0xFFFF_FFFF
        self._qtest.write32(where + 0x24, base)
        if self._qtest.read32(where + 0x24) & _64_BIT:
            self._qtest.write32(where + 0x28, 0)
        self._qtest.write16(where + 0x10, device.vfs)
        self._qtest.write16(where + 0x08, 1 << 0 | 1 << 3)  # VF Enable, VF MSE
        for vf in self._spec.devices:
            if vf.of == device.name:
                self._bars[vf.name] = base + (vf.number - 1) * size
                self.bus_master(vf, enabled=True)
