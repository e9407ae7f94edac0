"""Sizes and limits of USDM in VFIO mode, in bytes."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

PAGE_SIZE = 4 * KIB
"""Granularity of user mappings: addresses and sizes are multiples of it."""

IOVA_SLAB_SIZE = 2 * MIB
"""Granularity of the IOVA space, and the size of a memory slab."""

HUGEPAGE_SIZE = 2 * MIB
"""Size of a hugepage, and in hugepage mode the granularity of user mappings."""

UNIT = KIB
"""Allocation unit inside a slab: every block starts on a multiple of it and has a multiple of it."""

MAX_ALLOCATION = 64 * MIB
"""Largest size of `qaeMemAllocNUMA`, inclusive (measured on the C library)."""

MAX_ALIGNMENT = 4 * MIB
"""Largest alignment of `qaeMemAllocNUMA`, inclusive."""

MAX_MAPPING = 2 * GIB
"""Largest size of `qaeMemMapContiguousIova`, inclusive."""

CACHE_SIZE = 8 * MIB
"""Empty slabs that are kept, still DMA-mapped, for the next allocation."""

MAX_U64 = (1 << 64) - 1

DEFAULT_IOVA_RANGES = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))
"""Usable IOVAs, `(first, last)`, assumed while no container has told its own.

The narrowest IOMMU in use, 39 bits, without the x86 MSI window.
"""
