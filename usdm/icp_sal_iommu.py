"""The functions of `icp_sal_iommu.h`, with their names and return values, on the process's instance of `usdm.qae_mem`.

They never raise a `UsdmError`. A failure returns `CPA_STATUS_FAIL`, writes one line to standard error that says why,
and leaves the error for `last_error`. What they do depends on the context (`icp_sal_iommu_context`), which is decided
at run time; the reference decides when it is built. docs/icp-sal-iommu.md has more.
"""

from __future__ import annotations

from usdm import qae_mem
from usdm.errors import UsdmError
from usdm.last import last_error as last_error
from usdm.last import success, told
from usdm.remap_size import remap_size

CPA_STATUS_SUCCESS = 0
CPA_STATUS_FAIL = -1
CPA_STATUS_RETRY = -2
CPA_STATUS_RESOURCE = -3
CPA_STATUS_INVALID_PARAM = -4
CPA_STATUS_FATAL = -5
CPA_STATUS_UNSUPPORTED = -6
CPA_STATUS_RESTARTING = -7


def icp_sal_iommu_context() -> str | None:
    """Return what map and unmap do now: `domain0`, `no_iommu` (nothing) or `unregistered` (they fail).

    `usdm.remap` says more. The reference has no such function.

    Returns:
        None in a forked child of a process that uses USDM.
    """
    try:
        context = qae_mem.default_instance().context()
    except UsdmError as error:
        return told("icp_sal_iommu_context", error, None)
    success()
    return context


def icp_sal_iommu_get_remap_size(size: int) -> int:
    """Return `size` rounded up to whole pages of 4 KiB, 0 for 0.

    "Returns the page_size rounded for IOMMU remapping." The builds of the reference differ, from this and from each
    other (`usdm.remap_size.remap_size_of`): qatlib answers 0, qatlib for FreeBSD and the build without an IOMMU give
    the size as it is, and the user space build for SR-IOV gives a page too much (8192 for 4096).

    Returns:
        0 also for what is no size_t, and when the rounded size is none; `last_error` tells them apart.
    """
    try:
        rounded = remap_size(size)
    except UsdmError as error:
        return told("icp_sal_iommu_get_remap_size", error, 0)
    success()
    return rounded


def icp_sal_iommu_map(phaddr: int, iova: int, size: int) -> int:
    """Add an entry to the tables of the registered container's IOMMU: devices reach `phaddr` at `iova`.

    "In the case of VM, the APIs will do nothing. In the PF Domain 0 case, the APIs will update the hardware IOMMU
    tables." It differs from the builds of the reference:

    * Arguments are checked; the reference checks none of them and passes them to the kernel.
    * The physical range must be memory of this process, because VFIO maps nothing else, and because a program has no
      business in the memory of others. The reference's kernel module maps any range.
    * `iova` is where the entry goes. The reference's kernel build ignores it or swaps it with `phaddr`, which is
      harmless 1:1 only.
    * With an IOMMU and nothing registered it fails, where the reference's kernel module does nothing and succeeds when
      it has no domain. qatlib always answers CPA_STATUS_UNSUPPORTED.
    * The domain is that of the registered container, for all its devices and for no other; the reference has one
      domain for all devices.

    Args:
        phaddr: the physical address, a multiple of the page size.
        iova: where the entry goes, a multiple of the page size.
        size: bytes, whole pages.

    Returns:
        `CPA_STATUS_SUCCESS`, or `CPA_STATUS_FAIL`: nothing was changed then.
    """
    try:
        qae_mem.default_instance().remap(phaddr, iova, size)
    except UsdmError as error:
        return told("icp_sal_iommu_map", error, CPA_STATUS_FAIL)
    success()
    return CPA_STATUS_SUCCESS


def icp_sal_iommu_unmap(iova: int, size: int) -> int:
    """Remove one entry, or several that follow each other, from the tables.

    Only whole entries go: a range that cuts one, or has none, fails and changes nothing. The reference leaves that to
    the kernel: driver 4.8 succeeds when less was unmapped than asked for, 4.24 fails then, with a part unmapped.

    Args:
        iova: where the entry begins.
        size: bytes, as they were mapped.

    Returns:
        `CPA_STATUS_SUCCESS`, or `CPA_STATUS_FAIL`.
    """
    try:
        qae_mem.default_instance().unremap(iova, size)
    except UsdmError as error:
        return told("icp_sal_iommu_unmap", error, CPA_STATUS_FAIL)
    success()
    return CPA_STATUS_SUCCESS
