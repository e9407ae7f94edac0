"""Faults of an address: no mapping, one without the right, or an address beyond the width. The daily ones."""

from __future__ import annotations

from typing import Final

from harness.fault.advice.model import Advice

_GROUP: Final = "See which domain the device is in: ls -l /sys/bus/pci/devices/{device}/iommu_group/"
_DRIVER: Final = "See who drives it: ls -l /sys/bus/pci/devices/{device}/driver (vfio-pci for USDM)"
_TABLES: Final = (
    "Read the mappings, where the kernel has them: /sys/kernel/debug/iommu/intel/{device}/domain_translation_struct"
)

READ: Final = Advice(
    causes=(
        "The buffer was never mapped: its virtual or physical address went into the descriptor, not the IOVA.",
        "The buffer was unmapped or freed too early, while the device still had a request for it.",
        "A translation was kept after the free: the IOVA is that of a buffer that is gone.",
        "The PF has no 1:1 entry under SR-IOV: with an IOMMU in the host, its memory must be remapped one to one.",
        "The device reads beyond the end of the buffer, into the page behind it.",
        "The mapping allows writes only.",
    ),
    checks=(
        "Compare the address with what qaeMemMapContiguousIova or qaeVirtToPhysNUMA gave, at the time of the request.",
        "Look for an unmap, a free or an unregistration of that address before the request's completion.",
        "On a PF with VFs: look for icp_sal_iommu_map of every range before its first use.",
        _DRIVER,
        _GROUP,
        _TABLES,
    ),
    scenarios=(
        "dma/unmapped_read",
        "dma/read_after_unmap",
        "dma/access_after_free",
        "dma/page_before_and_after",
        "remap/pf_with_vfs",
        "tables/read_only",
    ),
)

WRITE: Final = Advice(
    causes=(
        "The buffer was never mapped: its virtual or physical address went into the descriptor, not the IOVA.",
        "The buffer was unmapped or freed too early: a response that comes late finds it gone.",
        "The mapping is read-only: the container was given VFIO_DMA_MAP_FLAG_READ without _WRITE.",
        "A translation was kept after the free: the IOVA is that of a buffer that is gone.",
        "The PF has no 1:1 entry under SR-IOV: with an IOMMU in the host, its memory must be remapped one to one.",
        "The device writes more than was asked for, into the page behind the buffer.",
    ),
    checks=(
        "Compare the address with what qaeMemMapContiguousIova or qaeVirtToPhysNUMA gave, at the time of the request.",
        "Look for an unmap, a free or an unregistration of that address before the response was polled.",
        "Look at the flags of the mapping: only VFIO_DMA_MAP_FLAG_WRITE lets the device write.",
        _DRIVER,
        _GROUP,
        _TABLES,
    ),
    scenarios=(
        "dma/unmapped_write",
        "dma/write_after_unmap",
        "dma/read_only_mapping",
        "dma/access_after_free",
        "dma/released_while_mapped",
        "remap/pf_with_vfs",
    ),
)

ACCESS: Final = Advice(
    causes=(*READ.causes[:5], "The mapping does not allow this kind of access."),
    checks=READ.checks,
    scenarios=("dma/unmapped_read", "dma/unmapped_write", "dma/read_after_unmap", "dma/read_only_mapping"),
)

WIDTH: Final = Advice(
    causes=(
        "The address is above the width: a virtual address (0x7f...) was given to the device in place of an IOVA.",
        "The IOMMU translates fewer bits than the program assumes: 39 or 48, by MGAW and by the domain's levels.",
        "A pointer with its upper bits set, or a sign-extended one.",
    ),
    checks=(
        "See the width: dmesg | grep -i 'host address width'; the domain may have less.",
        "See which IOVAs the group allows: cat /sys/bus/pci/devices/{device}/iommu_group/reserved_regions",
        "Ask VFIO for the ranges: VFIO_IOMMU_GET_INFO, capability IOVA_RANGE.",
        "Give explain the width: harness explain --aw-bits 48",
    ),
    scenarios=("dma/beyond_width_39", "dma/beyond_width_48", "dma/width_39"),
)

MSI: Final = Advice(
    causes=(
        "The address is in the MSI window: no mapping can be there, and a DMA to it is taken for an interrupt.",
        "A descriptor has an address that nobody mapped, and it happens to be in the window.",
    ),
    checks=("See that the window is reserved: cat /sys/bus/pci/devices/{device}/iommu_group/reserved_regions",),
    scenarios=("usdm/map_skips_msi_window",),
)

ENDED: Final = Advice(
    causes=("The address was in a mapping that had ended by then: a translation was kept after unmap or free.",),
    checks=("Look who still holds the IOVA: descriptors in a ring, a cached physical address, another process.",),
    scenarios=("dma/read_after_unmap", "dma/write_after_unmap", "dma/access_after_free"),
)
