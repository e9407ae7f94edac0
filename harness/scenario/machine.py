"""The machine that a scenario wants, and what it needs of the versions that run it."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.scenario.base import Model
from harness.scenario.values import Bdf, Name, Requirement, Size, Word, address_of, refuse, satisfies, split_bdf

_MIB = 1 << 20
_MAX_BUS = 0xFE
_NUMBERED_BUSES = 8  # those that the firmware numbers
SLOT_BUSES: Final = range(1, _NUMBERED_BUSES + 1)
"""The buses with a slot of their own, out of which a card can be pulled."""
_MAX_PORTS = 8
_MAX_SLOTS_OF_BUS_0 = 16  # the machine has devices of its own there


def _reachable(value: str) -> str:
    bus, device, function = split_bdf(value)
    if bus > _MAX_BUS or (bus == 0 and (device == 0 or (device, function) == (0x1F, 0))):
        hint = (
            "the buses 01 to fe hold devices anywhere, bus 00 from 00:01.0 on; 00:00 and 00:1f.0 are the machine's own"
        )
        raise refuse("a PCI address where a device can be", value, hint)
    return value


def _memory(value: int) -> int:
    if not 128 * _MIB <= value <= 64 << 30 or value % _MIB:
        raise refuse("a memory size from 128M to 64G in whole MiB", value, "the default is 512M")
    return value


def _option(value: str) -> str:
    if not re.fullmatch(r"[A-Z0-9_]{1,64}", value) or value.startswith("CONFIG_"):
        raise refuse("the name of a kernel option", value, "as in the kernel's configuration without CONFIG_: IOMMUFD")
    return value


def _device_name(value: str) -> str:
    if re.fullmatch(r"port[0-9]+", value):
        raise refuse("another name", value, "the machine's root ports have the names port1, port2 and so on")
    return value


class Device(Model):
    """An emulated PCI function under test."""

    model: Literal["edu", "nvme", "vf", "qat", "qat_vf"] = Field(
        description="edu copies up to 4 KiB per DMA, ten a second. nvme copies whole sectors of 512 bytes, thousands a "
        "second, and can have VFs. vf is a VF of an nvme. qat is a device with the IDs of an Intel QAT PF, qat_vf one "
        "with those of its VFs: they copy up to 16 MiB, say which DMA was refused, and misbehave when they are told "
        "to (QEMU 10.1 and later; docs/qat-device.md)."
    )
    at: Annotated[Bdf, AfterValidator(_reachable)] | None = Field(
        default=None,
        description="Where the guest sees it, bus:device.function. An nvme: 01:00.0 to fe:00.0, each bus behind a "
        "root port. An edu: anywhere on these buses, or on bus 00 but at 00:00 and 00:1f.0. A VF has none: its number "
        "says where.",
    )
    vfs: int = Field(default=0, ge=0, le=127, description="nvme: how many VFs it offers; 0, the default, is no SR-IOV.")
    of: Name | None = Field(default=None, description="vf: the PF, by its name.")
    number: int | None = Field(default=None, ge=1, le=127, description="vf: which one, from 1.")
    slot: bool = Field(
        default=False,
        description="true: in a slot that it can be pulled out of. A file with a surprise_removal of it needs not say "
        "so; a test in Python does.",
    )

    @model_validator(mode="after")
    def _fits_model(self) -> Device:
        if self.model == "vf":
            if self.of is None or self.number is None or self.at is not None or self.vfs or self.slot:
                raise refuse(
                    "of and number, and nothing else, for a vf",
                    "other keys",
                    "{model: vf, of: pf, number: 1}",
                    quote=False,
                )
            return self
        if self.of is not None or self.number is not None:
            raise refuse("of and number for a vf only", f"model: {self.model}", "take them away", quote=False)
        if self.at is None:
            raise refuse("an address", "none", 'write at: "02:00.0"', quote=False)
        if self.model != "nvme" and self.vfs:
            hint = f"{self.model} has no SR-IOV"
            raise refuse("VFs of an nvme only", f"vfs beside model: {self.model}", hint, quote=False)
        if self.model == "nvme" and (self.at.startswith("00:") or not self.at.endswith(":00.0")):
            raise refuse("an nvme behind a root port, at bb:00.0", self.at, "its VFs are at the functions behind it")
        if self.slot and (self.vfs or split_bdf(self.at)[0] not in SLOT_BUSES):
            hint = "at: on a bus from 01 to 08, without vfs"
            raise refuse("a slot that has the device for itself", self.at, hint)
        return self


class Machine(Model):
    """What the guest runs on."""

    iommu: Literal["intel", "virtio", "amd", "none"] = Field(
        default="intel",
        description="intel: QEMU's intel-iommu. virtio: its virtio-iommu. amd: its amd-iommu (QEMU 11.1 and "
        "later). none: a machine without a vIOMMU.",
    )
    aw_bits: Literal[36, 39, 48] = Field(
        default=48, description="Address width of the vIOMMU in bits; 36 of virtio only."
    )
    scalable: bool = Field(
        default=False,
        description="Whether intel-iommu is in scalable mode: PASID tables behind the context entries. Of iommu: intel "
        "only.",
    )
    memory: Annotated[Size, AfterValidator(_memory)] = Field(default=512 * _MIB, description="The guest's memory.")
    vm: bool = Field(
        default=False,
        description="Whether a virtual machine without a vIOMMU runs inside the guest, on QEMU; steps: pass_through, "
        "in_vm. Needs memory: 1G or more.",
    )
    cpus: int = Field(default=1, ge=1, le=64, description="Number of virtual CPUs.")
    kernel_args: tuple[Word, ...] = Field(
        default=(), strict=False, description="Further words for the kernel's command line, one per item."
    )
    devices: dict[Annotated[Name, AfterValidator(_device_name)], Device] = Field(
        default_factory=dict, description="Devices under test by the names that steps use."
    )

    @model_validator(mode="after")
    def _room_for_vm(self) -> Machine:
        if self.vm and self.memory < 1 << 30:
            raise refuse("at least 1G of memory beside vm: true", self.memory, "write memory: 1G")
        return self

    @model_validator(mode="after")
    def _mode(self) -> Machine:
        if self.scalable and self.iommu != "intel":
            raise refuse("scalable mode of iommu: intel only", f"iommu: {self.iommu}", "take it away", quote=False)
        return self

    @model_validator(mode="after")
    def _width(self) -> Machine:
        if self.aw_bits != 48 and self.iommu == "amd":
            raise refuse("aw_bits 48", self.aw_bits, "the width of iommu: amd cannot be chosen")
        if self.aw_bits == 36 and self.iommu != "virtio":
            raise refuse("aw_bits 39 or 48", self.aw_bits, "36 bits are possible with iommu: virtio only")
        return self

    @model_validator(mode="after")
    def _ports(self) -> Machine:
        places = [split_bdf(device.at) for device in self.devices.values() if device.at is not None]
        buses = {place[0] for place in places} - {0}
        slots = {place[1] for place in places if place[0] == 0}
        if len(slots) > _MAX_SLOTS_OF_BUS_0:
            hint = "put some of them behind root ports"
            raise refuse(f"devices in at most {_MAX_SLOTS_OF_BUS_0} slots of bus 00", len(slots), hint)
        if len(buses) > _MAX_PORTS:
            raise refuse(f"devices on at most {_MAX_PORTS} buses", len(buses), "a machine has a root port for each bus")
        if self.iommu == "amd" and max(buses, default=0) > _NUMBERED_BUSES:
            found = f"bus {max(buses):02x}"
            hint = "the firmware's table for AMD's IOMMU names no other bus"
            raise refuse(f"buses 00 to {_NUMBERED_BUSES:02x} with iommu: amd", found, hint, quote=False)
        return self

    def address(self, name: str) -> str:
        """Where the guest sees a device.

        Raises:
            KeyError: there is no such device, or a VF's PF is none.
        """
        return address_of(name, self.devices)

    @property
    def addresses(self) -> dict[str, str]:
        """Name of each device to its address."""
        return {name: self.address(name) for name in self.devices}


class Needs(Model):
    """Versions and implementations without which the scenario is skipped."""

    qemu: Requirement | None = Field(default=None, description='Comparisons with the QEMU version, e.g. ">=10.0".')
    kernel: Requirement | None = Field(default=None, description='Comparisons with the kernel release, e.g. ">=6.16".')
    kernel_options: dict[Annotated[str, AfterValidator(_option)], bool] = Field(
        default_factory=dict,
        description="Options of the kernel's configuration without CONFIG_, and whether they must be there; without "
        "--kernel a kernel is chosen that is so: {VFIO_NOIOMMU: true}.",
    )
    implementation: Literal["usdm", "libusdm", "kernel"] | None = Field(
        default=None, description="The only implementation that the steps make sense on."
    )
    libusdm: Requirement | None = Field(
        default=None, description='Comparisons with the version of the C library, e.g. ">=26.08".'
    )

    def unmet_options(self, options: Collection[str]) -> list[str]:
        """The options that are not as they must be, each as words.

        Args:
            options: names of the options, without ``CONFIG_``, that a kernel has built in or as modules.
        """
        return [
            f"{'with' if wanted else 'without'} {name}"
            for name, wanted in sorted(self.kernel_options.items())
            if (name in options) is not wanted
        ]

    def unmet_release(self, kernel: str) -> list[str]:
        """The release that is needed, as words, in a list; an empty one when the kernel's will do.

        Args:
            kernel: a kernel's release, or the beginning of it: ``7.2``, ``6.12.88+deb13-amd64``.
        """
        return [f"of release {self.kernel}"] if self.kernel and not satisfies(kernel, self.kernel) else []

    def unmet(
        self,
        *,
        qemu: str,
        kernel: str,
        implementation: str = "usdm",
        libusdm: str = "",
        options: Collection[str] | None = None,
    ) -> str | None:
        """Why these versions will not do, as one line; None when they will.

        Args:
            qemu: QEMU's version, e.g. ``11.1.3``.
            kernel: the guest kernel's release, e.g. ``6.12.88+deb13-amd64``.
            implementation: what the steps run on: ``usdm``, ``libusdm``, ``kernel`` or ``both``.
            libusdm: the C library's version, e.g. ``26.08.0-2``; empty without it.
            options: the kernel's options, see :meth:`unmet_options`; None when nobody knows them.
        """
        reasons = []
        if self.qemu and not satisfies(qemu, self.qemu):
            reasons.append(f"needs QEMU {self.qemu}, this is {qemu}")
        if self.kernel and not satisfies(kernel, self.kernel):
            reasons.append(f"needs kernel {self.kernel}, this is {kernel}")
        missing = [] if options is None else self.unmet_options(options)
        if missing:
            reasons.append(f"needs a kernel {' and '.join(missing)}, this is {kernel}")
        if self.implementation not in (None, implementation):
            reasons.append(f"needs the implementation {self.implementation}, this is {implementation}")
        if self.libusdm and libusdm and not satisfies(libusdm, self.libusdm):
            reasons.append(f"needs libusdm {self.libusdm}, this is {libusdm}")
        return "; ".join(reasons) or None
