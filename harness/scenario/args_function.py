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
    """The guest's administrator allows VFIO without an IOMMU, or forbids it (vfio.enable_unsafe_noiommu_mode).

    The error is NotSet where the kernel has no such parameter.
    """

    enabled: bool = Field(description="true: devices without an IOMMU can be opened, which is unsafe.")


class EnableVfs(DeviceArgs):
    """Switch SR-IOV of a PF on, and bring the VFs online that the machine's devices name.

    The PF is open and a bus master. Counts: vfs, and groups: the IOMMU groups of the PF and its VFs. Errors:
    NoSriov, TooManyVfs, VfsEnabled.
    """

    count: int = Field(ge=1, le=65535, description="How many VFs. More than the PF offers are refused by the kernel.")


class DisableVfs(DeviceArgs):
    """Switch SR-IOV of a PF off: its VFs are gone. VFs that are open are asked to let go, and are closed.

    Counts: vfs, which are left, and closed.
    """


class PassThrough(DeviceArgs):
    """Give the device to the virtual machine inside the guest (``machine.vm``), whose steps can open it then.

    The device must not be open.
    """


class Unbind(DeviceArgs):
    """Take a function away from vfio-pci. When it is open, its driver is asked to let go, and closes it.

    Its mappings are still there at that moment. Counts: closed.
    """


class Unplug(DeviceArgs):
    """The kernel removes a function. When it is open, its driver is asked to let go, and closes it.

    VFs go before their PF. Counts: closed. A VF cannot go alone: the error is NotTaken.
    """


class PhysicalAddress(Args):
    """Take the physical address of a buffer as its address for DMA (virt_to_phys; counts: contiguous).

    In DMAs the buffer is reached there from now on. The program writes to the page before, so that there is one.
    Counts: contiguous, the bytes that follow each other from there.
    """

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
    """icp_sal_iommu_map.

    Without `iova` the entry is 1:1.
    """

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
    """icp_sal_iommu_unmap.

    A buffer names the IOVA of the last remap that began at the offset, or before it.
    """

    buffer: Name | None = Field(default=None, description="The buffer, whose IOVA of its last remap is meant.")
    offset: Size = Field(default=0, description=_OFFSET)
    iova: Address | None = Field(default=None, description="Or the IOVA as a number.")
    size: Size = Field(description="Bytes. Sizes that are refused are allowed here.")

    @model_validator(mode="after")
    def _one_of(self) -> Unremap:
        exactly_one(self, "buffer", "iova")
        return self


class Mappings(DeviceArgs):
    """Read the IOMMU's own tables for a range of a device's IOVAs.

    They are read from outside the guest and compared with the pages of the buffer, or of what is linked into the
    range. The device need not be open. Counts, of pages of 4 KiB: mapped, unmapped, readable, writable, wrong.
    Refused behind virtio-iommu, which has no tables in the guest's memory, behind amd-iommu, and inside other
    steps. With `iova` nobody knows whose pages they should be, and only what is mapped is looked at.
    """

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
