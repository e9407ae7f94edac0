"""Entries of the IOMMU's tables as a bare scenario writes them down, the deliberately wrong ones included.

An entry is well formed unless a key says otherwise. ``bits`` sets further bits by their number, of which bit 0 is the
lowest of the entry's first byte: that is how reserved bits are set.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness.scenario.base import Model
from harness.scenario.values import Address, Name, Size, refuse

PAGE = 4096
PAGE_SIZES = {4096: 1, 2 << 20: 2, 1 << 30: 3}
"""Sizes of pages and the level of the table that has their entries."""

_DEVICE = "The device, by its name in machine.devices."
_DOMAIN = "The domain, by its name in tables.domains."
_PRESENT = "false: the entry's present bit is clear."
_NO_FAULTS = "true: FPD, faults are not recorded."
_POINTER = "An address instead of that of the next table, for example one without memory: 0x40000000."


def _page(value: int) -> int:
    if value not in PAGE_SIZES:
        raise refuse("4K, 2M or 1G", value, "the sizes that an IOMMU's pages have")
    return value


def _whole(value: int) -> int:
    if value % PAGE or value >> 52:
        raise refuse("the address of a page of at most 52 bits", f"{value:#x}", "a multiple of 0x1000", quote=False)
    return value


PageAddress = Annotated[Address, AfterValidator(_whole)]
"""The address of a page of 4 KiB."""


def _bits(last: int, name: str) -> AfterValidator:
    def check(value: tuple[int, ...]) -> tuple[int, ...]:
        for bit in value:
            if not 0 <= bit <= last:
                raise refuse(f"numbers from 0 to {last}", bit, f"a {name} has {last + 1} bits")
        return value

    return AfterValidator(check)


_BITS = "Further bits to set, by number, for example reserved ones."
Bits64 = Annotated[tuple[int, ...], _bits(63, "page table entry")]
Bits128 = Annotated[tuple[int, ...], _bits(127, "root, context or interrupt-remapping entry")]
Bits256 = Annotated[tuple[int, ...], _bits(255, "context entry of scalable mode")]
Bits512 = Annotated[tuple[int, ...], _bits(511, "PASID table entry")]


class Pages(Model):
    """Pages one after the other that lead to memory in one piece."""

    iova: Address = Field(description="The first IOVA, a multiple of the page size.")
    to: Address = Field(description="The physical address that it leads to, a multiple of the page size.")
    size: Size = Field(default=PAGE, description="Bytes, a multiple of the page size. Default: 4K.")
    page: Annotated[Size, AfterValidator(_page)] = Field(
        default=PAGE, description="Size of the pages: 4K (default), 2M, 1G."
    )
    access: Literal["read", "write", "read_write", "none"] = Field(
        default="read_write", description="What the device may do there."
    )
    bits: Bits64 = Field(default=(), strict=False, description=_BITS + " In the page's own entry.")

    @model_validator(mode="after")
    def _aligned(self) -> Pages:
        for key, value in (("iova", self.iova), ("to", self.to), ("size", self.size)):
            if value % self.page or (key == "size" and not value):
                raise refuse(f"a multiple of the page size as {key}", f"{value:#x}", "4K is 0x1000", quote=False)
        if self.size // self.page > 4096:
            raise refuse("at most 4096 pages", self.size // self.page, "take larger pages")
        return self


class Domain(Model):
    """Page tables that devices share."""

    id: int | None = Field(default=None, ge=0, le=0xFFFF, description="DID. Default: 1, 2, ... in order.")
    stage: Literal["first", "second"] = Field(default="second", description="first: with machine.first_stage only.")
    levels: Literal[3, 4, 5] | None = Field(default=None, description="Default: as many as the IOMMU's width takes.")
    pages: tuple[Pages, ...] = Field(default=(), strict=False, description="What is mapped at the beginning.")


class RootFields(Model):
    """What a root entry says; the context table that belongs there is made anyway."""

    present: bool = Field(default=True, description=_PRESENT)
    table: PageAddress | None = Field(default=None, description=_POINTER)
    bits: Bits128 = Field(default=(), strict=False, description=_BITS)


class PasidFields(Model):
    """Scalable mode: the PASID table entry of requests without a PASID."""

    present: bool = Field(default=True, description=_PRESENT)
    type: int | None = Field(
        default=None,
        ge=0,
        le=7,
        description="PGTT: 1 first stage, 2 second stage, 3 nested, 4 pass-through, others reserved. Default: as the "
        "domain's tables are, 4 without a domain.",
    )
    width: int | None = Field(default=None, ge=0, le=7, description="AW, as in a context entry.")
    no_faults: bool = Field(default=False, description=_NO_FAULTS)
    table: PageAddress | None = Field(default=None, description=_POINTER)
    bits: Bits512 = Field(default=(), strict=False, description=_BITS)


class PasidDirectoryFields(Model):
    """Scalable mode: the PASID directory entry that leads to that PASID table."""

    present: bool = Field(default=True, description=_PRESENT)
    table: PageAddress | None = Field(default=None, description=_POINTER)
    bits: Bits64 = Field(default=(), strict=False, description=_BITS)


class ContextFields(Model):
    """What a context entry says."""

    domain: Name | None = Field(default=None, description=_DOMAIN + " Without one there are no page tables.")
    present: bool = Field(default=True, description=_PRESENT)
    type: Literal["untranslated", "device_tlb", "pass_through", "reserved"] = Field(
        default="untranslated",
        description="TT of legacy mode: untranslated requests go through the page tables; device_tlb: and translated "
        "ones are let through; pass_through: no page tables are asked; reserved: a value that means nothing.",
    )
    width: int | None = Field(
        default=None, ge=0, le=7, description="AW: 1, 2, 3 for 3, 4, 5 levels. Default: as the domain's tables are."
    )
    no_faults: bool = Field(default=False, description=_NO_FAULTS)
    table: PageAddress | None = Field(default=None, description=_POINTER)
    bits: Bits256 = Field(default=(), strict=False, description=_BITS)
    directory: PasidDirectoryFields = Field(
        default_factory=PasidDirectoryFields, description="Scalable mode: the PASID directory entry."
    )
    pasid: PasidFields = Field(default_factory=PasidFields, description="Scalable mode: the PASID table entry.")


class IrteFields(Model):
    """What an interrupt-remapping table entry says."""

    present: bool = Field(default=True, description=_PRESENT)
    no_faults: bool = Field(default=False, description=_NO_FAULTS)
    vector: int = Field(default=0x30, ge=0, le=0xFF, description="The vector that is delivered. Default: 0x30.")
    source: Name | None = Field(
        default=None,
        description="The only device that may send it. Default: nobody is asked.",
    )
    bits: Bits128 = Field(default=(), strict=False, description=_BITS)


class Irte(IrteFields):
    """An interrupt-remapping table entry and its place."""

    index: int = Field(ge=0, le=0xFFFF, description="Its index in the table.")


class Interrupts(Model):
    """The interrupt-remapping table."""

    entries: Literal[2, 4, 8, 16, 32, 64, 128, 256] = Field(default=16, description="How many entries it has.")
    table: PageAddress | None = Field(default=None, description=_POINTER)
    entry: tuple[Irte, ...] = Field(default=(), strict=False, description="The entries that say something.")


class Tables(Model):
    """What is in memory before the first step."""

    mode: Literal["legacy", "scalable", "reserved", "abort"] = Field(
        default="legacy", description="TTM: what the root table is said to be. With reserved and abort it is legacy."
    )
    root_table: PageAddress | None = Field(default=None, description=_POINTER)
    domains: dict[Name, Domain] = Field(default_factory=dict, description="Page tables by name.")
    roots: dict[Name, RootFields] = Field(
        default_factory=dict,
        description="Root entries of the buses of devices, by the device. Default: present where there is a context "
        "entry on the bus.",
    )
    contexts: dict[Name, ContextFields] = Field(
        default_factory=dict,
        description="Context entries by the device. Without one it is not present.",
    )
    interrupts: Interrupts = Field(default_factory=Interrupts, description="The interrupt-remapping table.")
