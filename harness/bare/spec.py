"""A machine without a guest system as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BareModel = Literal["edu", "nvme", "vf", "iommu_testdev", "pci_testdev"]


@dataclass(frozen=True, slots=True)
class BareDeviceSpec:
    """A PCI function.

    Args:
        name: its name in the scenario; also QEMU's id.
        model: what it is.
        source_id: bus << 8 | device << 3 | function, where configuration cycles find it.
        requester: the requester ID of its DMA, which a PCIe-to-PCI bridge changes.
        bridge: whether it is behind such a bridge, which is alone on the bus before.
        vfs: how many VFs an nvme has.
        of: name of a VF's PF.
        number: which VF it is, from 1; 0 for others.
    """

    name: str
    model: BareModel
    source_id: int
    requester: int
    bridge: bool = False
    vfs: int = 0
    of: str = ""
    number: int = 0

    @property
    def bus(self) -> int:
        """Its bus."""
        return self.source_id >> 8

    @property
    def slot(self) -> int:
        """Its device number."""
        return self.source_id >> 3 & 0x1F

    @property
    def function(self) -> int:
        """Its function number."""
        return self.source_id & 7


@dataclass(frozen=True, slots=True)
class BareSpec:
    """What QEMU emulates.

    Args:
        aw_bits: address width of the IOMMU.
        memory: bytes.
        devices: the functions.
        scalable: the IOMMU offers scalable mode.
        first_stage: it offers first-stage tables.
    """

    aw_bits: int
    memory: int
    devices: tuple[BareDeviceSpec, ...]
    scalable: bool = False
    first_stage: bool = False

    @property
    def ports(self) -> dict[int, int]:
        """Bus behind each root port to the port's device number on bus 0."""
        buses = sorted({one.bus - one.bridge for one in self.devices} - {0})
        return {bus: 0x10 + number for number, bus in enumerate(buses)}
