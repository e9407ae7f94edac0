"""The arguments of the steps of bare scenarios."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.bare_tables import Bits64, ContextFields, Irte, PageAddress, Pages, RootFields
from harness.scenario.values import Address, Name, Pattern, Size, refuse

_DOMAIN = "The domain, by its name in tables.domains."


class Enable(Args):
    """Point the IOMMU to its tables, forget everything cached, and switch on what is asked for."""

    translation: bool = Field(default=True, description="DMA is translated (GCMD.TE). Default: true.")
    interrupts: bool = Field(default=False, description="Interrupts are remapped (GCMD.IRE). Default: false.")
    queue: bool | None = Field(
        default=None,
        description="Invalidation goes through a queue in memory, and not through registers. Default: in scalable "
        "mode and beside interrupts, where it must.",
    )


class Disable(Args):
    """Switch translation and interrupt remapping off."""


class Reset(Args):
    """Reset the whole machine, and set its devices up again. Memory stays as it is; the IOMMU forgets everything."""


class BareBusMaster(DeviceArgs):
    """Let the device access memory, or not."""

    enabled: bool = Field(description="true: the device may do DMA.")


class DmaArgsBare(DeviceArgs):
    """What both directions have."""

    iova: Address = Field(description="The IOVA that the device is told.")
    size: Size = Field(description="Bytes: of edu 1 to 4095, of an nvme 4096, of iommu_testdev 4 to 4096 in fours.")
    device_offset: Size = Field(default=0, description="edu: offset in its own memory.")


class BareDmaRead(DmaArgsBare):
    """The device reads memory into its own bytes. edu only."""


class BareDmaWrite(DmaArgsBare):
    """The device writes memory: edu what it holds, nvme what Identify says, iommu_testdev 0x12345678 over and over."""

    to: Address | None = Field(
        default=None,
        description="iommu_testdev: the physical address where the bytes must be found. Default: the IOVA itself.",
    )


class Interrupt(DeviceArgs):
    """The device (edu) sends a message-signalled interrupt."""

    index: int | None = Field(
        default=None, ge=0, le=0xFFFF, description="Of the remappable format: the index of the table's entry."
    )
    address: Address | None = Field(
        default=None, description="Or the whole address of the message: of the old format 0xfee00000."
    )
    data: int = Field(default=0, ge=0, le=0xFFFF, description="The message's data; of the old format the vector.")

    @model_validator(mode="after")
    def _one(self) -> Interrupt:
        if (self.index is None) == (self.address is None):
            raise refuse("exactly one of index and address", "both or neither", "write index: 0", quote=False)
        return self


class BareMap(Pages, Args):
    """Write entries of a domain's page tables, and of missing tables above them. Nothing is invalidated."""

    domain: Name = Field(description=_DOMAIN)


class BareUnmap(Args):
    """Clear the entries of pages. Nothing is invalidated."""

    domain: Name = Field(description=_DOMAIN)
    iova: Address = Field(description="The first IOVA.")
    size: Size = Field(default=4096, description="Bytes; the pages in it are cleared. Default: 4K.")


class Entry(Args):
    """Write one entry on the way to an IOVA, at any level of a domain's page tables. Nothing is invalidated."""

    domain: Name = Field(description=_DOMAIN)
    iova: Address = Field(description="An IOVA that the entry is on the way to.")
    level: int = Field(ge=1, le=5, description="Level of the table that has the entry; 1 has the pages of 4K.")
    clear: bool = Field(default=False, description="The entry becomes 0.")
    table: PageAddress | None = Field(default=None, description="Another address that it leads to.")
    access: Literal["read", "write", "read_write", "none"] | None = Field(
        default=None, description="What it lets a device do; every entry on the way must."
    )
    bits: Bits64 = Field(default=(), strict=False, description="Further bits to set, by number.")


class Root(RootFields, Args):
    """Write the root entry of a device's bus anew. Nothing is invalidated."""

    device: Name = Field(description="A device on that bus.")


class Context(ContextFields, Args):
    """Write a device's context entry anew. Nothing is invalidated."""

    device: Name = Field(description="The device, by its name in machine.devices.")


class IrteArgs(Irte, Args):
    """Write an entry of the interrupt-remapping table anew. Nothing is invalidated."""


class InvalidateContext(Args):
    """Have the IOMMU forget context entries."""

    scope: Literal["global", "domain", "device"] = Field(default="global", description="Which ones.")
    domain: Name | None = Field(default=None, description=_DOMAIN + " Of scope domain and device.")
    device: Name | None = Field(default=None, description="Of scope device: whose entry.")

    @model_validator(mode="after")
    def _fits(self) -> InvalidateContext:
        wanted = {"global": (False, False), "domain": (True, False), "device": (True, True)}[self.scope]
        if wanted != (self.domain is not None, self.device is not None):
            needs = {"global": "neither domain nor device", "domain": "a domain", "device": "a domain and a device"}
            hint = "the scopes are global, domain, device"
            raise refuse(f"{needs[self.scope]} beside scope: {self.scope}", "otherwise", hint, quote=False)
        return self


class InvalidateIotlb(Args):
    """Have the IOMMU forget translations."""

    scope: Literal["global", "domain", "page"] = Field(default="global", description="Which ones.")
    domain: Name | None = Field(default=None, description=_DOMAIN + " Of scope domain and page.")
    iova: Address | None = Field(default=None, description="Of scope page: the first IOVA.")
    size: Size = Field(default=4096, description="Of scope page: bytes, 4K times a power of two. Default: 4K.")

    @model_validator(mode="after")
    def _fits(self) -> InvalidateIotlb:
        wanted = {"global": (False, False), "domain": (True, False), "page": (True, True)}[self.scope]
        if wanted != (self.domain is not None, self.iova is not None):
            needs = {"global": "neither domain nor iova", "domain": "a domain", "page": "a domain and an iova"}
            hint = "the scopes are global, domain, page"
            raise refuse(f"{needs[self.scope]} beside scope: {self.scope}", "otherwise", hint, quote=False)
        pages = self.size // 4096
        if self.size % 4096 or pages < 1 or pages & (pages - 1):
            raise refuse("4K times a power of two", self.size, "an invalidation has no other sizes")
        return self


class InvalidatePasids(Args):
    """Have the IOMMU forget PASID table entries (scalable mode)."""


class InvalidateInterrupts(Args):
    """Have the IOMMU forget interrupt-remapping table entries."""


class FaultEvent(Args):
    """Set the interrupt that tells of faults up. It is masked at the beginning."""

    masked: bool = Field(description="FECTL.IM: it is not sent, but stays pending.")
    vector: int = Field(default=0x40, ge=0, le=0xFF, description="Its vector. Default: 0x40.")


class ClearFault(Args):
    """Clear the fault registers, as a system does when it has read them."""

    what: Literal["record", "overflow", "all"] = Field(
        default="all", description="record: F of the fault recording register; overflow: FSTS.PFO; all (default): both."
    )


class ReadRegisters(Args):
    """Read the fault registers."""


class BareFill(Args):
    """Write a pattern to memory, at physical addresses."""

    address: Address = Field(description="The physical address.")
    size: Size = Field(description="Bytes, at most 1M.")
    pattern: Pattern = Field(description="random, counter, zero, or a byte from 0 to 255.")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="Of random.")


class BareCheck(BareFill):
    """Compare memory with a pattern."""
