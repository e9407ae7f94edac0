"""The arguments of the kinds of steps: the table of ``docs/architecture.md`` as models."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.scenario.base import Model
from harness.scenario.expect import exactly_one
from harness.scenario.values import Address, Name, Pattern, SignedSize, Size, refuse

_DEVICE = "The device, by its name in machine.devices."
_BUFFER = "The buffer, by the name that alloc, alloc_plain or buffer gave it."
_AS = "A new name for later steps."
_OFFSET = "Offset in bytes from the start of the buffer."


class Args(Model):
    """Arguments of a step."""

    def args_json(self) -> dict[str, Any]:
        """The arguments as plain JSON for the worker; what was left out and has no default is not there."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class DeviceArgs(Args):
    """Arguments of steps that concern a device."""

    device: Name = Field(description=_DEVICE)


class Open(DeviceArgs):
    """Open the device through VFIO.

    Another container is a VFIO container of its own. Over IOMMUFD there is no container, and nothing to register.
    """

    container: Name | None = Field(
        default=None, description="A container of its own by this name. Default: the one that all devices share."
    )
    type: Literal["type1", "type1v2"] | None = Field(
        default=None, description="IOMMU type of a container that is not open yet. Default: type1, as libqat does."
    )
    through: Literal["vfio", "iommufd"] | None = Field(
        default=None,
        description="vfio (default): by its group and a container. iommufd: by its character device, attached to the "
        "IOAS that all such devices of the program share.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Open:
        if self.through == "iommufd" and (self.container is not None or self.type is not None):
            hint = "containers belong to through: vfio; devices of through: iommufd share one IOAS"
            raise refuse("no container and no type beside through: iommufd", "one", hint, quote=False)
        return self


class Close(DeviceArgs):
    """Close the device; the kernel stops its DMA."""


class BusMaster(DeviceArgs):
    """Let the device access memory, or not."""

    enabled: bool = Field(description="true: the device may do DMA.")


class ContainerInfo(DeviceArgs):
    """Ask the kernel about the device's container: how many more mappings it takes (counts: mappings_left).

    An empty container has 65535 left.
    """


class Register(DeviceArgs):
    """qaeRegisterDevice with the device's VFIO container. Opens the device first when it is not open."""


class Unregister(DeviceArgs):
    """qaeUnregisterDevice with the device's VFIO container."""


class RegisterFd(Args):
    """qaeRegisterDevice with something that is no container."""

    fd: Literal["closed", "null", "device", "group"] = Field(
        description="closed: a closed descriptor; null: /dev/null; device, group: an open VFIO device or group."
    )


class Alloc(Args):
    """qaeMemAllocNUMA.

    It fails when the IOVA is no multiple of `align`.
    """

    as_: Name = Field(alias="as", description=_AS)
    size: Size = Field(description="Bytes. Sizes that USDM refuses are allowed here.")
    align: Size = Field(default=4096, description="Alignment of the IOVA in bytes. Default: 4K.")
    node: int = Field(default=-1, ge=-(1 << 31), lt=1 << 31, description="NUMA node; -1, the default, is any.")


class Free(Args):
    """qaeMemFreeNUMA, or qaeMemFreeNonZeroNUMA."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description="Free this many bytes behind the start instead, which is a mistake.")
    zero: bool = Field(default=True, description="false: qaeMemFreeNonZeroNUMA. Default: true.")


class AllocPlain(Args):
    """qaeMemAlloc: ordinary memory, not for DMA."""

    as_: Name = Field(alias="as", description=_AS)
    size: Size = Field(description="Bytes.")


class FreePlain(Args):
    """qaeMemFree."""

    buffer: Name = Field(description=_BUFFER)


class Buffer(Args):
    """The program takes memory of its own from the kernel."""

    as_: Name = Field(alias="as", description=_AS)
    size: Size = Field(description="Bytes, at least 1; the kernel gives whole pages.")
    backing: Literal["anonymous", "repeated", "read_only", "huge"] = Field(
        default="anonymous",
        description="anonymous (default); repeated: one piece of 2 MiB mapped again and again, for buffers larger than "
        "the guest's memory, in a large page where the kernel can; read_only: the program itself may not write to it; "
        "huge: hugepages of 2 MiB.",
    )
    align: Size = Field(default=4096, description="What the address is a multiple of, a power of two from 4K to 1G.")

    @field_validator("align")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if not 4096 <= value <= 1 << 30 or value & (value - 1):
            raise refuse("a power of two from 4K to 1G", value, "the default is 4K, the page size")
        return value

    @model_validator(mode="after")
    def _huge_is_aligned(self) -> Buffer:
        if self.backing == "huge" and self.align > 2 << 20:
            raise refuse("align of at most 2M beside backing: huge", self.align, "the kernel aligns hugepages to 2M")
        return self

    @field_validator("size")
    @classmethod
    def _not_empty(cls, value: int) -> int:
        if not 1 <= value <= 1 << 46:
            raise refuse("a buffer size from 1 to 64 TiB", value, "to pass size 0 to USDM, write it in map")
        return value


class Release(Args):
    """The program gives memory of its own back to the kernel."""

    buffer: Name = Field(description="The buffer, by the name that a buffer step gave it.")


class AddressArgs(Args):
    """A virtual address: a buffer and an offset, or a number."""

    buffer: Name | None = Field(default=None, description=_BUFFER)
    address: Address | None = Field(default=None, description="Or a virtual address as a number; 0 is NULL.")
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size = Field(description="Bytes. Sizes that USDM refuses are allowed here.")

    @model_validator(mode="after")
    def _one_of(self) -> AddressArgs:
        exactly_one(self, "buffer", "address")
        return self


class Map(AddressArgs):
    """qaeMemMapContiguousIova.

    It fails when the IOVA is no multiple of 2 MiB.
    """


class Unmap(AddressArgs):
    """qaeMemUnmapContiguousIova."""


class PiecesArgs(Args):
    """Pieces of a buffer, one after the other."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size = Field(description="Bytes of a piece.")
    count: int = Field(ge=1, le=1 << 20, description="How many pieces.")


class MapEach(PiecesArgs):
    """qaeMemMapContiguousIova for one piece after the other, until one fails (counts: done)."""


class UnmapEach(PiecesArgs):
    """qaeMemUnmapContiguousIova for one piece after the other, until one fails (counts: done)."""


class AtFork(Args):
    """qaeAtFork."""


class MemInit(Args):
    """qaeMemInit."""


class MemDestroy(Args):
    """qaeMemDestroy."""


class MemInitFd(Args):
    """qaeMemInitAndReturnFd."""


class Statistics(Args):
    """The statistics of usdm (counts).

    Counts have the names that `usdm.report.Statistics` has. The C library has none.
    """


class Environment(Args):
    """Set an environment variable of the program, before USDM is first used."""

    name: str = Field(description="The variable, e.g. QAT_MAX_2M_HPG_PER_PROCESS.")
    value: str = Field(description="Its value, in quotes.")

    @field_validator("name")
    @classmethod
    def _variable(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", value):
            raise refuse(
                "the name of a variable", value, "capitals, digits and _, for example ICP_THREAD_SPECIFIC_USDM"
            )
        return value


class Hugepages(Args):
    """The guest's kernel keeps a number of 2 MiB pages (counts: total, free)."""

    pages: int = Field(ge=0, le=1 << 16, description="How many.")
    folder: bool = Field(default=True, description="Make /dev/hugepages/qat too, which the C library wants.")


class LimitMemory(Args):
    """The program may lock only so much memory (RLIMIT_MEMLOCK), and gives up CAP_IPC_LOCK.

    It comes before the registration: what is registered has its limit already.
    """

    bytes: Size = Field(description="The limit.")


class Nodes(Args):
    """Ask the kernel which NUMA nodes the pages of a buffer are on."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size | None = Field(default=None, description="Bytes of the range. Default: to the end of the buffer.")


class Threads(Args):
    """Threads map, translate, unmap, allocate and free at once (counts: done, wrong)."""

    count: int = Field(ge=1, le=64, description="How many threads.")
    rounds: int = Field(ge=1, le=100_000, description="How often each does it.")


class Translate(Args):
    """qaeVirtToPhysNUMA for addresses of a range.

    Counts: present, absent.
    """

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size | None = Field(default=None, description="Bytes of the range. Default: to the end of the buffer.")
    stride: Size = Field(default=4096, description="Distance of the addresses. Default: 4K.")

    @field_validator("stride")
    @classmethod
    def _not_zero(cls, value: int) -> int:
        if value == 0:
            raise refuse("a stride of at least 1", value, "4K looks at every page")
        return value


class TranslateBack(Args):
    """qaePhysToVirtNUMA of qaeVirtToPhysNUMA of an address."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)


class Fill(Args):
    """The program writes a pattern to a buffer."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size | None = Field(default=None, description="Bytes. Default: to the end of the buffer.")
    pattern: Pattern = Field(
        description="random (from seed), counter (another word at each place), zero, or every byte's value, 0 to 255."
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="Another seed gives other random bytes. Default: 0.")


class Check(Fill):
    """The program reads a buffer and compares it with a pattern."""


class Compare(Args):
    """The program compares two buffers."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    with_: Name = Field(alias="with", description="The other buffer.")
    with_offset: Size = Field(default=0, description="Offset in bytes from the start of the other buffer.")
    size: Size = Field(description="Bytes.")


class DmaArgs(DeviceArgs):
    """Arguments of a DMA."""

    iova: Address | None = Field(default=None, description="The IOVA that the device uses.")
    buffer: Name | None = Field(
        default=None, description="Or the buffer whose IOVA it is: the one it had when it was allocated or last mapped."
    )
    range: Name | None = Field(default=None, description="Or the range of iova_alloc, which begins there.")
    offset: SignedSize = Field(
        default=0, description="Offset from the IOVA of the buffer or range, negative for a place before it."
    )
    size: Size = Field(description="Bytes: 1 to 4096 of an edu, whole sectors of 512 up to 512K of an nvme.")
    device_offset: Size = Field(
        default=0, description="Where in the device's own bytes: 4096 of an edu, 16M in sectors of an nvme."
    )

    @model_validator(mode="after")
    def _one_of(self) -> DmaArgs:
        exactly_one(self, "iova", "buffer", "range")
        if self.iova is not None and self.offset:
            raise refuse("an offset only beside buffer or range", "iova and offset", "add it to the IOVA", quote=False)
        return self


class DmaRead(DmaArgs):
    """The device reads memory into its own bytes."""


class DmaWrite(DmaArgs):
    """The device writes memory from its own bytes."""


class ContainerMap(DeviceArgs):
    """VFIO_IOMMU_MAP_DMA on the device's container, beside USDM."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    size: Size = Field(description="Bytes.")
    iova: Address = Field(description="The IOVA.")
    access: Literal["read", "write", "read_write"] = Field(description="What the device may do with it.")


class ContainerUnmap(DeviceArgs):
    """VFIO_IOMMU_UNMAP_DMA on the device's container, beside USDM."""

    iova: Address = Field(description="The IOVA.")
    size: Size = Field(description="Bytes.")
