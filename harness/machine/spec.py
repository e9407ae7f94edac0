"""A machine as data: what QEMU shall emulate, without saying how it is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

Iommu = Literal["intel", "virtio", "amd", "none"]

TABLE_OF_BUSES: Final[frozenset[Iommu]] = frozenset({"virtio"})
"""The firmware's table names the buses that these serve, as the root ports have them when it is written. So the last
port reserves all that are left, and gives them up when another port gets one."""

SERVED: Final = ("qat", "qat_vf")
"""The models that are served by a process beside QEMU."""

_BDF = re.compile(r"([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """An emulated PCI device.

    Args:
        name: its name in the scenario; also QEMU's id.
        model: ``edu``, ``nvme``, ``qat`` and ``qat_vf``, or ``vf`` for a VF of an nvme, which is there when its PF's
            SR-IOV has been switched on.
        at: bus, device and function where the guest sees it, e.g. ``02:00.0``.
        vfs: how many VFs an nvme offers.
        of: name of a VF's PF.
    """

    name: str
    model: Literal["edu", "nvme", "vf", "qat", "qat_vf"]
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
        iommu: ``intel`` for QEMU's intel-iommu, ``virtio`` for its virtio-iommu, ``amd`` for its amd-iommu, ``none``
            for a machine without one.
        aw_bits: address width of the vIOMMU in bits: 39 or 48, of virtio-iommu also 36, of amd-iommu 48.
        scalable: intel-iommu offers scalable mode, and the kernel is told to use it.
        memory: guest memory in bytes.
        cpus: number of virtual CPUs.
        kernel_args: further words for the kernel's command line.
        devices: the devices under test.
        vm: whether a virtual machine runs inside the guest.
        buses: number of root ports, 1 to 8; bus N (1 to ``buses``) is behind port N, see :attr:`port_of`.
        any_function: whether devices behind the ports may have other device numbers than 0: the kernel then looks for
            them everywhere, and not only where PCI Express allows them.
        hot_plug: buses, of 1 to ``buses``, that are behind hot-plug ports, whose cards can be pulled out.
    """

    iommu: Iommu = "intel"
    aw_bits: int = 48
    scalable: bool = False
    memory: int = 512 << 20
    cpus: int = 1
    kernel_args: tuple[str, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    buses: int = 4
    vm: bool = False
    any_function: bool = False
    hot_plug: tuple[int, ...] = ()

    @property
    def port_of(self) -> dict[int, int]:
        """Bus of each device that is behind a root port, to the number of the port.

        A port has the bus of its own number. A device on a higher bus is behind a port that no other bus needs, and the
        guest gives that port the bus (:attr:`renumbered`). So a template serves every bus.
        """
        wanted = sorted({device.bdf[0] for device in self.devices} - {0})
        ports = {bus: bus for bus in wanted if bus <= self.buses}
        free = [port for port in range(1, self.buses + 1) if port not in ports]
        higher = [bus for bus in wanted if bus > self.buses]
        return ports | dict(zip(higher, free, strict=False))

    @property
    def renumbered(self) -> dict[int, int]:
        """Number of each root port to the bus that the guest must give it."""
        numbers = {port: bus for bus, port in self.port_of.items() if port != bus}
        if numbers and self.iommu in TABLE_OF_BUSES:
            numbers.setdefault(self.buses, self.buses)
        return numbers

    @property
    def frozen(self) -> MachineSpec:
        """The same machine as a template has it: without the devices under test that a clone can add.

        QEMU freezes no machine with a device that a process serves, and what is in a hot-plug port leaves nothing in
        the state: an edu keeps the place of either until the clone has it. The names are those of the places, so that
        scenarios with other names share the template.
        """
        kept = (
            replace(one, name=f"at.{one.at.replace(':', '.')}", model="edu", vfs=0)
            if one.model in SERVED or one.bdf[0]
            else replace(one, name=f"at.{one.at.replace(':', '.')}")
            for one in self.fixed_devices
        )
        return replace(self, devices=tuple(kept))

    @property
    def fixed_devices(self) -> tuple[DeviceSpec, ...]:
        """The devices that a clone can only have when there was one at their place in its template.

        They are those on bus 0: the firmware names each function there in the DMAR table, and the kernel gives others
        no IOMMU group. And all behind ports of a machine with hot-plug: the state that is loaded says of a slot whether
        there is a card and whether it has power, and QEMU 7.2 refuses it where that is not so. The device itself still
        begins anew in each clone.
        """
        places = range(self.buses + 1) if self.hot_plug else (0,)
        return tuple(device for device in self.devices if device.bdf[0] in places and device.model != "vf")
