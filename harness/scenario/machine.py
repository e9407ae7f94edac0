"""The machine that a scenario wants, and what it needs of the versions that run it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.scenario.base import Model
from harness.scenario.values import Bdf, Name, Requirement, Size, Word, refuse, satisfies, split_bdf

_MIB = 1 << 20
_MAX_BUS = 8
_MAX_SLOT_OF_BUS_0 = 0x0F


def _reachable(value: str) -> str:
    bus, device, function = split_bdf(value)
    good = 1 <= device <= _MAX_SLOT_OF_BUS_0 if bus == 0 else bus <= _MAX_BUS and device == 0
    if not good or function:
        hint = "each bus from 01 to 08 holds one device at bb:00.0; bus 00 holds devices at 00:01.0 to 00:0f.0"
        raise refuse("a PCI address where a device can be", value, hint)
    return value


def _memory(value: int) -> int:
    if not 128 * _MIB <= value <= 64 << 30 or value % _MIB:
        raise refuse("a memory size from 128M to 64G in whole MiB", value, "the default is 512M")
    return value


def _device_name(value: str) -> str:
    if re.fullmatch(r"port[0-9]+", value):
        raise refuse("another name", value, "the machine's root ports have the names port1, port2 and so on")
    return value


class Device(Model):
    """An emulated PCI device under test."""

    model: Literal["edu"] = Field(description="QEMU's device model. edu copies up to 4 KiB per DMA, both ways.")
    at: Annotated[Bdf, AfterValidator(_reachable)] = Field(
        description="Where the guest sees it, bus:device.function: 01:00.0 to 08:00.0 behind a root port each, or "
        "00:01.0 to 00:0f.0."
    )


class Machine(Model):
    """What the guest runs on."""

    iommu: Literal["intel", "virtio", "none"] = Field(
        default="intel",
        description="intel: QEMU's intel-iommu. virtio: its virtio-iommu, without a witness for faults, so without "
        "DMA. none: a machine without a vIOMMU.",
    )
    aw_bits: Literal[36, 39, 48] = Field(
        default=48, description="Address width of the vIOMMU in bits; 36 of virtio only."
    )
    memory: Annotated[Size, AfterValidator(_memory)] = Field(default=512 * _MIB, description="The guest's memory.")
    cpus: int = Field(default=1, ge=1, le=64, description="Number of virtual CPUs.")
    kernel_args: tuple[Word, ...] = Field(
        default=(), strict=False, description="Further words for the kernel's command line, one per item."
    )
    devices: dict[Annotated[Name, AfterValidator(_device_name)], Device] = Field(
        default_factory=dict, description="Devices under test by the names that steps use."
    )

    @model_validator(mode="after")
    def _width(self) -> Machine:
        if self.aw_bits == 36 and self.iommu != "virtio":
            raise refuse("aw_bits 39 or 48", self.aw_bits, "36 bits are possible with iommu: virtio only")
        return self


class Needs(Model):
    """Versions and implementations without which the scenario is skipped."""

    qemu: Requirement | None = Field(default=None, description='Comparisons with the QEMU version, e.g. ">=10.0".')
    kernel: Requirement | None = Field(default=None, description='Comparisons with the kernel release, e.g. ">=6.16".')
    implementation: Literal["usdm", "libusdm"] | None = Field(
        default=None, description="The only implementation that the steps make sense on."
    )
    libusdm: Requirement | None = Field(
        default=None, description='Comparisons with the version of the C library, e.g. ">=26.08".'
    )

    def unmet(self, *, qemu: str, kernel: str, implementation: str = "usdm", libusdm: str = "") -> str | None:
        """Why these versions will not do, as one line; None when they will.

        Args:
            qemu: QEMU's version, e.g. ``11.1.3``.
            kernel: the guest kernel's release, e.g. ``6.12.88+deb13-amd64``.
            implementation: what the steps run on: ``usdm``, ``libusdm`` or ``both``.
            libusdm: the C library's version, e.g. ``26.08.0-2``; empty without it.
        """
        reasons = []
        if self.qemu and not satisfies(qemu, self.qemu):
            reasons.append(f"needs QEMU {self.qemu}, this is {qemu}")
        if self.kernel and not satisfies(kernel, self.kernel):
            reasons.append(f"needs kernel {self.kernel}, this is {kernel}")
        if self.implementation not in (None, implementation):
            reasons.append(f"needs the implementation {self.implementation}, this is {implementation}")
        if self.libusdm and libusdm and not satisfies(libusdm, self.libusdm):
            reasons.append(f"needs libusdm {self.libusdm}, this is {libusdm}")
        return "; ".join(reasons) or None
