"""Errors of the two-step DMA mapping API: `usdm.dma_iova` names the rules' source."""

from __future__ import annotations

from usdm.errors import MapFailed, UnmapFailed, UsdmError

# ---- the state


class NoRange(UsdmError):
    """The state has no range: none was allocated, it was freed, or it ended with its domain."""

    rule = "the state must have a range; the streaming API is for the rest"


class RangeInUse(UsdmError):
    """`dma_iova_try_alloc` with a state that has a range: the range would be lost."""

    rule = "the state must have no range; free or destroy that one first"


class WrongDevice(UsdmError):
    """The range was allocated for another device."""

    rule = "must be the device that the range was allocated for"


class DomainEnded(UsdmError):
    """The IOAS was destroyed, or its file closed."""

    rule = "the device's IOVA space must not have ended"


# ---- links


class OutsideRange(UsdmError):
    """Offset and size go beyond the size given to `dma_iova_try_alloc`."""

    rule = "must lie within the range"


class MemoryNotAtGranule(UsdmError):
    """The memory of a link other than the one at offset 0 does not begin at a granule."""

    rule = "the memory of every link but the first must begin at the merge boundary"


class OffsetNotAtGranule(UsdmError):
    """A link other than the one at offset 0 does not begin at a granule of the IOVA space."""

    rule = "every link but the first must begin at the merge boundary"


class EndNotAtGranule(UsdmError):
    """A link that has another one behind it does not end at a granule."""

    rule = "every link but the last must end at the merge boundary"


class FirstOffset(UsdmError):
    """The memory of the link at offset 0 lies otherwise in its granule than the address given to try_alloc."""

    rule = "the memory at offset 0 must have the offset in its granule that the range was allocated for"


class LinkOverlap(UsdmError):
    """Another link is in part of the offsets."""

    rule = "must not overlap another link"


class BadDirection(UsdmError):
    """The direction is DMA_NONE, or no direction."""

    rule = "must be DMA_BIDIRECTIONAL, DMA_TO_DEVICE or DMA_FROM_DEVICE"


class WrongDirection(UsdmError):
    """The direction is not the one that the memory was linked or mapped with."""

    rule = "must be the direction that the memory was linked with"


class BadAttributes(UsdmError):
    """An attribute is unknown here."""

    rule = "must consist of DMA_ATTR_SKIP_CPU_SYNC, DMA_ATTR_MMIO and DMA_ATTR_REQUIRE_COHERENT"


class BounceBuffer(UsdmError):
    """An untrusted device would see the rest of a granule, and there are no bounce buffers (the kernel has swiotlb)."""

    rule = "for an untrusted device, memory must consist of whole granules; there are no bounce buffers"


class BounceRefused(BounceBuffer):
    """As `BounceBuffer`, and DMA_ATTR_MMIO or DMA_ATTR_REQUIRE_COHERENT forbids one: the kernel refuses it as well."""

    rule = "for an untrusted device, memory that must not be bounced must consist of whole granules"


class NotLinked(UsdmError):
    """There is no link at an offset that sync, unlink or destroy is asked for."""

    rule = "must be linked completely"


class PartOfLink(UsdmError):
    """Sync, unlink or destroy would cut a link."""

    rule = "must cover whole links"


class StillLinked(UsdmError):
    """`dma_iova_free` with links, or `dma_iova_destroy` with one behind `mapped_len`."""

    rule = "nothing else may be linked any more"


# ---- streaming mappings


class NotStreamed(UsdmError):
    """No mapping of `dma_map_single` begins at the IOVA."""

    rule = "must be an IOVA that dma_map_single returned"


class StreamedSize(UsdmError):
    """The mapping has another size."""

    rule = "must be the size given to dma_map_single"


# ---- IOMMUFD


class IoasMapFailed(MapFailed):
    """`IOMMU_IOAS_MAP` failed."""

    rule = "the IOAS must map the range"


class IoasUnmapFailed(UnmapFailed):
    """`IOMMU_IOAS_UNMAP` failed, or removed another number of bytes than were mapped."""

    rule = "the IOAS must unmap the range"
