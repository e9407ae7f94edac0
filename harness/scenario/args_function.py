"""The arguments of steps about PCI functions and what their addresses stand for: SR-IOV, no-IOMMU mode, remapping."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.scenario.args import Args, DeviceArgs
from harness.scenario.expect import exactly_one
from harness.scenario.values import Address, Name, Size, refuse

_BUFFER = "The buffer, by the name that alloc, alloc_plain or buffer gave it."
_OFFSET = "Offset in bytes from the start of the buffer."


class NoIommu(Args):
    """The guest's administrator allows VFIO without an IOMMU, or forbids it (vfio.enable_unsafe_noiommu_mode)."""

    enabled: bool = Field(description="true: devices without an IOMMU can be opened, which is unsafe.")


class EnableVfs(DeviceArgs):
    """Switch SR-IOV of a PF on, and bring the VFs online that the machine's devices name."""

    count: int = Field(ge=1, le=65535, description="How many VFs. More than the PF offers are refused by the kernel.")


class DisableVfs(DeviceArgs):
    """Switch SR-IOV of a PF off: its VFs are gone. VFs that are open are asked to let go, and are closed."""


class PassThrough(DeviceArgs):
    """Give the device to the virtual machine inside the guest (``machine.vm``), whose steps can open it then."""


class Unbind(DeviceArgs):
    """Take a function away from vfio-pci. When it is open, its driver is asked to let go, and closes it."""


class Unplug(DeviceArgs):
    """The kernel removes a function. When it is open, its driver is asked to let go, and closes it."""


class PhysicalAddress(Args):
    """Take the physical address of a buffer as its address for DMA (virt_to_phys; counts: contiguous)."""

    buffer: Name = Field(description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)


class RemapSize(Args):
    """icp_sal_iommu_get_remap_size."""

    size: Size = Field(description="Bytes that are wanted.")
    build: Literal["documented", "in_tree", "freebsd", "vm", "user_sriov", "kernel"] = Field(
        default="documented",
        description="Whose rule: documented (usdm itself, the default), or that of a build of the reference.",
    )


class Remap(Args):
    """icp_sal_iommu_map."""

    buffer: Name | None = Field(default=None, description=_BUFFER)
    offset: Size = Field(default=0, description=_OFFSET)
    phaddr: Address | None = Field(default=None, description="Or the physical address as a number.")
    iova: Address | None = Field(default=None, description="The IOVA. Default: the physical address itself, 1:1.")
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")

    @model_validator(mode="after")
    def _one_of(self) -> Remap:
        exactly_one(self, "buffer", "phaddr")
        return self


class Unremap(Args):
    """icp_sal_iommu_unmap."""

    buffer: Name | None = Field(default=None, description="The buffer, whose IOVA of its last remap is meant.")
    offset: Size = Field(default=0, description=_OFFSET)
    iova: Address | None = Field(default=None, description="Or the IOVA as a number.")
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")

    @model_validator(mode="after")
    def _one_of(self) -> Unremap:
        exactly_one(self, "buffer", "iova")
        return self


class Mappings(DeviceArgs):
    """Read the IOMMU's own tables for a range of a device's IOVAs."""

    buffer: Name | None = Field(default=None, description="The buffer whose IOVAs, as it has them now, are meant.")
    range: Name | None = Field(default=None, description="Or the range of iova_alloc, and the memory linked into it.")
    offset: Size = Field(default=0, description="Offset in bytes from the start of the buffer or range.")
    iova: Address | None = Field(default=None, description="Or the first IOVA as a number.")
    size: Size = Field(description="Bytes, a multiple of 4K.")

    @model_validator(mode="after")
    def _one_of(self) -> Mappings:
        exactly_one(self, "buffer", "range", "iova")
        if self.size == 0 or self.size % 4096 or self.size > 1 << 30:
            raise refuse("a size from 4K to 1G in whole pages", self.size, "the tables are looked at page by page")
        return self
