"""Sizes of `icp_sal_iommu_get_remap_size`: the documented rule, and those of the builds of the reference."""

from __future__ import annotations

from usdm import check, errors
from usdm.limits import MAX_U64, PAGE_SIZE

DOCUMENTED = "documented"
BUILDS = (DOCUMENTED, "in_tree", "freebsd", "vm", "user_sriov", "kernel")
"""`documented`, then the reference: qatlib in the tree, qatlib for FreeBSD, the out-of-tree user space without an IOMMU
(a virtual machine), with SR-IOV (a PF in domain 0), and the out-of-tree kernel module."""

_MAX_PAGES = (1 << 31) - 1


def remap_size(size: int) -> int:
    """Return `size` rounded up to whole pages of 4 KiB ("Returns the page_size rounded for IOMMU remapping"); 0 for 0.

    Raises:
        BadArgument: `size` is no 64-bit integer.
        RangeOverflow: Rounded up it does not fit 64 bits.
    """
    size = check.integer("size", size)
    if size > MAX_U64 - (PAGE_SIZE - 1):
        raise errors.RangeOverflow("size", size, "rounded up to whole pages")
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def remap_size_of(build: str, size: int) -> int:
    """Return what a build of the reference answers.

    Args:
        build: One of `BUILDS`. `in_tree` answers 0, `freebsd` and `vm` the size as it is; `user_sriov` one page more
            than whole pages need, so 8192 for 4096; `kernel` rounds up, and wraps around at 64 bits.
        size: Bytes.

    Raises:
        BadArgument: `size` is no 64-bit integer, or there is no such build, or the build has no answer: `user_sriov`
            counts pages in 32 bits.
        RangeOverflow: As `remap_size`.
    """
    if build == DOCUMENTED:
        return remap_size(size)
    size = check.integer("size", size)
    if build == "in_tree":
        return 0
    if build in ("freebsd", "vm"):
        return size
    if build == "user_sriov":
        pages = size // PAGE_SIZE + 1
        if pages > _MAX_PAGES:
            raise errors.BadArgument("size", size, f"the build counts up to {_MAX_PAGES} pages")
        return pages * PAGE_SIZE
    if build == "kernel":
        return (size + PAGE_SIZE - 1) & MAX_U64 & -PAGE_SIZE
    raise errors.BadArgument("build", build, f"the builds are {', '.join(BUILDS)}")
