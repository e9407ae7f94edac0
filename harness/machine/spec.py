"""A machine as data: what QEMU shall emulate, without saying how it is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Iommu = Literal["intel", "virtio", "amd", "none"]

_BDF = re.compile(r"([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """An emulated PCI device.

    Args:
        name: its name in the scenario; also QEMU's id.
        model: ``edu``, ``nvme``, or ``vf`` for a VF, which is there when its PF's SR-IOV has been switched on.
        at: bus, device and function where the guest sees it, e.g. ``02:00.0``.
        vfs: how many VFs an nvme offers.
        of: name of a VF's PF.
    """

    name: str
    model: Literal["edu", "nvme", "vf"]
    at: str
    vfs: int = 0
    of: str = ""

    @property
    def bdf(self) -> tuple[int, int, int]:
        """(bus, device, function) as numbers.

        Raises:
            ValueError: ``at`` is not written as ``bb:dd.f``.
        """
        match = _BDF.fullmatch(self.at)
        if not match:
            raise ValueError(f"'{self.at}' is no PCI address of the form bb:dd.f")
        return int(match[1], 16), int(match[2], 16), int(match[3])


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a guest runs on.

    Args:
        iommu: ``intel`` for QEMU's intel-iommu, ``virtio`` for its virtio-iommu, ``amd`` for its amd-iommu, ``none`` for
            a machine without one.
        aw_bits: address width of the vIOMMU in bits: 39 or 48, of virtio-iommu also 36, of amd-iommu 48.
        memory: guest memory in bytes.
        cpus: number of virtual CPUs.
        kernel_args: further words for the kernel's command line.
        devices: the devices under test.
        vm: whether a virtual machine runs inside the guest.
        buses: number of root ports, 1 to 8; bus N (1 to ``buses``) is behind port N.
    """

    iommu: Iommu = "intel"
    aw_bits: int = 48
    memory: int = 512 << 20
    cpus: int = 1
    kernel_args: tuple[str, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    buses: int = 4
    vm: bool = False

    @property
    def frozen(self) -> MachineSpec:
        """The same machine as a template has it: without the devices under test that a clone can add."""
        return replace(self, devices=self.fixed_devices)

    @property
    def fixed_devices(self) -> tuple[DeviceSpec, ...]:
        """The devices that a clone can only have when its template had them: those on bus 0.

        The firmware names each function of bus 0 in the DMAR table, and the kernel gives others no IOMMU group. The
        device itself still begins anew in each clone.
        """
        return tuple(device for device in self.devices if device.bdf[0] == 0)
