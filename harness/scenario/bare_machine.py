"""The machine of a bare scenario: an IOMMU and devices, and no system that runs on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.scenario.base import Model
from harness.scenario.values import Bdf, Name, Requirement, Size, address_of, refuse, satisfies, split_bdf

_MIB = 1 << 20
_ROOT_PORTS = range(0x10, 0x18)
_LAST_SLOT_OF_BUS_0 = 0x1E
MAX_BUSES = len(_ROOT_PORTS)
"""How many buses behind root ports a machine can have."""

SINCE = {"iommu_testdev": ">=11.0"}
"""Models of devices that not every QEMU has."""

EDU_BYTES = 4095
"""What edu's own memory has room for; QEMU 7.2 aborts when the last byte is copied."""

NVME_BYTES = 4096
"""What an nvme writes in one DMA: the data of Identify."""


def _placed(value: str) -> str:
    bus, device, _ = split_bdf(value)
    if bus == 0xFF or (bus == 0 and (device == 0 or device in _ROOT_PORTS or device > _LAST_SLOT_OF_BUS_0)):
        hint = "buses 01 to fe have every device and function, bus 00 the devices 01 to 0f and 18 to 1e"
        raise refuse("a PCI address where a device can be", value, hint)
    return value


def _memory(value: int) -> int:
    if not 64 * _MIB <= value <= 2 << 30 or value % _MIB:
        raise refuse("a memory size from 64M to 2G in whole MiB", value, "the default is 64M")
    return value


class BareDevice(Model):
    """An emulated PCI function that does DMA."""

    model: Literal["edu", "nvme", "vf", "iommu_testdev", "pci_testdev"] = Field(
        description="edu copies up to 4095 bytes in either direction and sends MSIs. nvme writes the 4K of Identify, "
        "and can have VFs. vf is a VF of an nvme. iommu_testdev (QEMU 11.0 and later) writes, and says whether it was "
        "blocked. pci_testdev has registers only."
    )
    at: Annotated[Bdf, AfterValidator(_placed)] | None = Field(
        default=None,
        description="Its bus, device and function. Each bus other than 00 is behind a root port of its own.",
    )
    bridge: bool = Field(
        default=False,
        description="Whether it is behind a PCIe-to-PCI bridge, whose own bus is the one before: the requester ID of "
        "its DMA is then device 00.0 of its bus.",
    )
    vfs: int = Field(default=0, ge=0, le=127, description="nvme: how many VFs it has; 0, the default, is no SR-IOV.")
    of: Name | None = Field(default=None, description="vf: the PF, by its name.")
    number: int | None = Field(default=None, ge=1, le=127, description="vf: which one, from 1.")

    @model_validator(mode="after")
    def _fits_model(self) -> BareDevice:
        if self.model == "vf":
            if self.of is None or self.number is None or self.at is not None or self.vfs or self.bridge:
                hint = "{model: vf, of: pf, number: 1}"
                raise refuse("of and number, and nothing else, for a vf", "other keys", hint, quote=False)
            return self
        if self.of is not None or self.number is not None:
            raise refuse("of and number for a vf only", f"model: {self.model}", "take them away", quote=False)
        if self.at is None:
            raise refuse("an address", "none", 'write at: "02:00.0"', quote=False)
        bus, device, _ = split_bdf(self.at)
        if self.model != "nvme" and self.vfs:
            raise refuse("VFs of an nvme only", f"vfs beside model: {self.model}", "take them away", quote=False)
        if self.vfs and (bus == 0 or self.bridge or self.at[3:] != "00.0"):
            raise refuse("a PF at 00.0 behind a root port", self.at, "for example 02:00.0")
        if self.bridge and (bus < 2 or device == 0):
            raise refuse("a place behind a bridge", self.at, "bus 02 or later, device 01 or later: 03:01.0")
        return self


class BareMachine(Model):
    """The IOMMU, memory and devices."""

    aw_bits: Literal[39, 48] = Field(default=48, description="Address width of the IOMMU in bits.")
    scalable: bool = Field(default=False, description="Whether the IOMMU offers scalable mode.")
    first_stage: bool = Field(
        default=False, description="Whether it offers first-stage tables; with scalable: true, from QEMU 10.0 on."
    )
    memory: Annotated[Size, AfterValidator(_memory)] = Field(
        default=64 * _MIB, description="Memory. The tables are in it from 32M on; what is below is the scenario's."
    )
    devices: dict[Name, BareDevice] = Field(
        default_factory=dict, description="The devices by the names that steps use. They begin as bus masters."
    )

    @model_validator(mode="after")
    def _modes(self) -> BareMachine:
        if self.first_stage and not self.scalable:
            raise refuse("scalable: true beside first_stage", "scalable: false", "write scalable: true", quote=False)
        return self

    def address(self, name: str) -> str:
        """A device's bus, device and function.

        Raises:
            KeyError: there is no such device, or a VF's PF is none.
        """
        return address_of(name, self.devices)

    def requester(self, name: str) -> str:
        """What the requester ID of a device's DMA says; a PCIe-to-PCI bridge puts its own there."""
        address = self.address(name)
        return f"{address[:2]}:00.0" if self.devices[name].bridge else address

    @property
    def buses(self) -> tuple[int, ...]:
        """The buses directly behind root ports, ascending."""
        found = set()
        for device in self.devices.values():
            if device.at is not None:
                bus = split_bdf(device.at)[0] - device.bridge
                found |= {bus} if bus else set()
        return tuple(sorted(found))


class BareNeeds(Model):
    """What a bare scenario is skipped without."""

    qemu: Requirement | None = Field(default=None, description='Comparisons with the QEMU version, e.g. ">=10.0".')

    def unmet(self, qemu: str, machine: BareMachine) -> str | None:
        """Why this version will not do, as one line; None when it will.

        Args:
            qemu: QEMU's version, e.g. ``11.1.3``.
            machine: the scenario's machine, whose devices may ask for a version too.
        """
        if self.qemu and not satisfies(qemu, self.qemu):
            return f"needs QEMU {self.qemu}, this is {qemu}"
        for name, device in machine.devices.items():
            since = SINCE.get(device.model)
            if since and not satisfies(qemu, since):
                return f"{name} ({device.model}) needs QEMU {since}, this is {qemu}"
        return None
