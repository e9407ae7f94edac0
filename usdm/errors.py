"""One tree of errors. Every error names the rule that was broken and carries the argument that broke it.

The C interface has one failure value for many causes and prints nothing (defect L1 of the C library); here each cause
has its own class, and `usdm.qae_mem.last_error` gives the instance behind a C failure value.
"""

from __future__ import annotations

import errno as _errno
import os


class UsdmError(Exception):
    """Base of all errors of USDM.

    Attributes:
        rule: The precondition that was broken, the same for every instance of a class.
        argument: Name of the argument that broke it, as in the public call.
        value: What was given for it.
        detail: What is known beside that, or an empty string.
    """

    rule = "a precondition of USDM"

    def __init__(self, argument: str, value: object, detail: str = "") -> None:
        super().__init__(argument, value, detail)
        self.argument = argument
        self.value = value
        self.detail = detail

    def __str__(self) -> str:
        value = hex(self.value) if type(self.value) is int and self.value > 255 else repr(self.value)
        text = f"{self.argument} = {value}: {self.rule}"
        return f"{text} ({self.detail})" if self.detail else text


# ---- arguments


class BadArgument(UsdmError, TypeError):
    """The argument is not an integer of the C type (a bool, float or string; negative; wider than 64 bits)."""

    rule = "must be an integer that fits the C type"


class NullAddress(UsdmError):
    """The address, the pointer, or the pointer's cell is NULL."""

    rule = "must not be NULL"


class NotAligned(UsdmError):
    """A virtual address, or the size of a mapping, is not a multiple of 4 KiB, or of 2 MiB in hugepage mode."""

    rule = "must be a multiple of 4 KiB, or of 2 MiB in hugepage mode"


class BadSize(UsdmError):
    """The size is 0."""

    rule = "must be greater than 0"


class TooLarge(UsdmError):
    """The size exceeds 2 GiB (mappings) or 64 MiB (allocations)."""

    rule = "must not exceed the largest size"


class BadAlignment(UsdmError):
    """The alignment of an allocation is 0, not a power of two, or exceeds 4 MiB."""

    rule = "must be a power of two from 1 to 4 MiB"


class AddressNotAccessible(UsdmError):
    """Part of the virtual range is not mapped in this process."""

    rule = "the whole virtual range must be mapped in this process"


# ---- mappings of the program's own memory


class AlreadyMapped(UsdmError):
    """The virtual range overlaps a live mapping (D4, D5 of the C library: the first one could never be unmapped)."""

    rule = "must not overlap a live mapping"


class NotMapped(UsdmError):
    """No live mapping or allocation holds the address."""

    rule = "must lie in a live mapping or allocation"


class SizeMismatch(UsdmError):
    """The size given to unmap is not the size that was mapped (D6 of the C library)."""

    rule = "must be the size given to map"


class AllocatedMemory(UsdmError):
    """The range is, or overlaps, memory that `qaeMemAllocNUMA` owns (D8 of the C library)."""

    rule = "must not be memory that USDM manages itself (free it instead)"


class InteriorPointer(UsdmError):
    """The address lies inside an allocation or mapping, but is not its start (D7, A3 of the C library)."""

    rule = "must be the address that allocate or map was given or returned"


# ---- allocations


class NotAllocated(UsdmError):
    """USDM never handed out this address."""

    rule = "must have been returned by allocate"


class DoubleFree(UsdmError):
    """The address was handed out, and has been freed already."""

    rule = "must not be freed twice"


class NoMemory(UsdmError):
    """The kernel or the C library gave no memory."""

    rule = "the process must be able to get that much memory"


class NoSuchNode(UsdmError):
    """The machine has no NUMA node of that number, or the node has no memory (the C library looks at no node: N1)."""

    rule = "must be -1 or a NUMA node that has memory"


class HugepagesNotConfigured(UsdmError):
    """Hugepage mode was asked for, and the kernel has no 2 MiB hugepages: every call fails (H1 of the C library)."""

    rule = "hugepage mode needs 2 MiB hugepages in /sys/kernel/mm/hugepages"


class HugepageQuota(UsdmError):
    """The process holds as many hugepages as it may (`QAT_MAX_2M_HPG_PER_PROCESS`)."""

    rule = "must fit the hugepages that this process may have"


class HugepagesExhausted(UsdmError):
    """The kernel's pool has no free hugepage: it is too small, or other processes have them."""

    rule = "the kernel's pool must have free hugepages"


# ---- IOVA space


class NoIovaSpace(UsdmError):
    """No gap in the IOVA space is large enough (full or fragmented)."""

    rule = "a contiguous gap of the IOVA space must hold it"


class IovaOutOfRange(UsdmError):
    """Memory that was allocated before has an IOVA which the container to be registered cannot translate."""

    rule = "the container's IOVA ranges must hold the IOVAs of the memory allocated so far"


# ---- registration


class NotRegistered(UsdmError):
    """No container is registered."""

    rule = "a VFIO container must be registered first"


class NotAContainer(UsdmError):
    """The file descriptor is closed, or no VFIO container with an IOMMU set."""

    rule = "must be a VFIO container whose IOMMU type is set"


class WrongContainer(UsdmError):
    """Another container is registered."""

    rule = "must be the container that is registered; a process can use one container only"


class NoIommuMode(UsdmError):
    """The container has no IOMMU behind it: nothing can be mapped, and an IOVA must be a physical address."""

    rule = "is not available in no-IOMMU mode"


class HugepagesNeeded(NoIommuMode):
    """Memory is asked for in 4 KiB mode, and the registered container has no IOMMU."""

    rule = "without an IOMMU, memory must come from hugepages (QAT_MAX_2M_HPG_PER_PROCESS)"


class ForkedChild(UsdmError):
    """The caller is a forked child of the process that this state belongs to (F1 of the C library)."""

    rule = "the state belongs to another process; a forked child must not use its parent's container"


class Unsupported(UsdmError):
    """The kernel, or this implementation, does not offer it."""

    rule = "is not supported"


# ---- physical addresses


class PhysicalAddressHidden(UsdmError):
    """The kernel shows the frame numbers in /proc/self/pagemap as 0, or does not let the process read the file."""

    rule = "the process must be able to read its physical addresses, which takes CAP_SYS_ADMIN"


class PageNotPresent(UsdmError):
    """No page of memory is at the virtual address: it was never written to, or it is swapped out."""

    rule = "a page must be present at the virtual address; write to it first"


class NotContiguous(UsdmError):
    """The hugepages of an allocation do not lie one behind the other, or not at a multiple of the alignment."""

    rule = "without an IOMMU, an allocation must be contiguous in physical memory"


class ForeignMemory(UsdmError):
    """A frame of the physical range is in no page that this process may write to."""

    rule = "the physical range must be writable memory of this process"


class PageMoved(UsdmError):
    """The kernel moved or copied a page after its frame was looked up and before it was pinned."""

    rule = "the pages must still have these frames when they are pinned; look the physical address up again"


# ---- entries of icp_sal_iommu


class RangeOverflow(UsdmError):
    """Address and size together exceed 64 bits."""

    rule = "the range must end within 64 bits"


class IovaReserved(UsdmError):
    """The IOVA range meets a reserved window (0xfee00000 on x86), or goes beyond the IOMMU's address width."""

    rule = "the IOVA range must lie in one of the container's usable ranges"


class IovaTaken(UsdmError):
    """The IOVA range shares a byte with another entry, or a unit of 2 MiB with memory that USDM has given an IOVA."""

    rule = "the IOVA range must be free"


class NotRemapped(UsdmError):
    """No entry is at the IOVA, or the range covers IOVAs without an entry."""

    rule = "the IOVA range must be that of an entry"


class PartOfEntry(UsdmError):
    """The IOVA range cuts an entry."""

    rule = "the IOVA range must cover whole entries"


# ---- VFIO devices and groups


class DeviceNotFound(UsdmError):
    """There is no PCI device of that address."""

    rule = "must be the address of a PCI device"


class NoIommuGroup(UsdmError):
    """The device is in no IOMMU group: there is no IOMMU, or the kernel does not use it."""

    rule = "the device must be in an IOMMU group"


class DeviceNotBound(UsdmError):
    """The device is not bound to a VFIO driver."""

    rule = "the device must be bound to vfio-pci"


class GroupNotViable(UsdmError):
    """Another device of the same IOMMU group is bound to a driver of the host."""

    rule = "all devices of the IOMMU group must be bound to VFIO drivers, or to none"


# ---- errors of the kernel


class KernelError(UsdmError):
    """A system call failed.

    Attributes:
        errno: The error number.
    """

    rule = "the kernel must accept the call"
    meanings: dict[int, str] = {}  # noqa: RUF012 - subclasses replace it, nobody changes it

    def __init__(self, argument: str, value: object, errno: int, detail: str = "") -> None:
        meaning = self.meanings.get(errno) or os.strerror(errno)
        told = f"{_errno.errorcode.get(errno, errno)}: {meaning}"
        super().__init__(argument, value, f"{told}; {detail}" if detail else told)
        self.args = (argument, value, errno, detail)
        self.errno = errno


class MapFailed(KernelError):
    """`VFIO_IOMMU_MAP_DMA` failed. EEXIST too is a failure (D3 of the C library took it for a success)."""

    rule = "VFIO must map the range for DMA"
    meanings = {  # noqa: RUF012
        _errno.ENOSPC: "the container has its 65,535 mappings",
        _errno.ENOMEM: "RLIMIT_MEMLOCK does not allow to pin that much memory",
        _errno.EFAULT: "a page is not mapped in this process, or is read-only",
        _errno.EEXIST: "the IOVA range is mapped already, by somebody beside USDM",
        _errno.EINVAL: "the IOVA lies in a reserved window or beyond the IOMMU's width, or is not aligned",
        _errno.EBADF: "the container has been closed",
    }


class TooManyMappings(MapFailed):
    """The container has as many mappings as the kernel allows (ENOSPC; 65,535 with IOMMU type 1)."""


class LockedMemoryLimit(MapFailed):
    """The memory of the mapping cannot be pinned (ENOMEM): RLIMIT_MEMLOCK, without CAP_IPC_LOCK."""


def map_failed(argument: str, value: object, errno: int, detail: str = "") -> MapFailed:
    """Return the `MapFailed`, or the subclass, that belongs to the error number of `VFIO_IOMMU_MAP_DMA`."""
    kind = {_errno.ENOSPC: TooManyMappings, _errno.ENOMEM: LockedMemoryLimit}.get(errno, MapFailed)
    return kind(argument, value, errno, detail)


class UnmapFailed(KernelError):
    """`VFIO_IOMMU_UNMAP_DMA` failed, or removed another number of bytes than were mapped."""

    rule = "VFIO must unmap the range"
    meanings = {  # noqa: RUF012
        _errno.EINVAL: "the range cuts a mapping, or the container has lost its last group",
        _errno.ENOENT: "the kernel has no such mapping: somebody beside USDM removed or changed it",
        _errno.EBADF: "the container has been closed",
    }


class DeviceError(KernelError):
    """Opening or driving a VFIO container, group or device failed."""

    rule = "VFIO must accept the call"
    meanings = {  # noqa: RUF012
        _errno.ENODEV: "no such device, or the module vfio_iommu_type1 is not loaded",
        _errno.EPERM: "not permitted; without interrupt remapping VFIO refuses the group",
        _errno.EBUSY: "somebody has it open",
        _errno.EACCES: "no permission for the device node",
    }
