"""The process's DMA address space: regions, their IOVAs, and the container that maps them."""

from __future__ import annotations

from usdm import errors
from usdm.iova import IovaSpace
from usdm.limits import IOVA_SLAB_SIZE
from usdm.regions import RegionTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.container import AttachedContainer
    from usdm.regions import Region


class AddressSpace:
    """Regions, IOVAs and DMA mappings, changed together or not at all.

    Without a container regions have an IOVA but no DMA mapping; `attach` maps them.

    Attributes:
        regions: The live regions.
        container: The container that maps them, or None.
    """

    def __init__(self) -> None:
        self.regions = RegionTable()
        self.container: AttachedContainer | None = None
        self._iovas = IovaSpace()

    def attach(self, container: AttachedContainer) -> None:
        """Map every region into a container, each at the IOVA it has. After a failure none is mapped (R1).

        Raises:
            IovaOutOfRange: The container cannot translate the IOVA of a region.
            MapFailed: The kernel refused a mapping.
            NoIommuMode: The container has no IOMMU, and IOVAs were told already: they would be wrong addresses.
        """
        if container.no_iommu:
            if len(self.regions):
                raise errors.NoIommuMode("fd", container.fd, "memory was allocated before, for a container with IOMMU")
            self.container = container
            return
        # A new space from the ranges of this container, before anything else uses them (D11, D12).
        iovas = IovaSpace(container.iova_ranges, self._iovas.cursor)
        for region in self.regions:
            if not iovas.reserve(region.iova, region.size):
                raise errors.IovaOutOfRange("fd", container.fd, f"IOVA {region.iova:#x}, size {region.size:#x}")
        mapped: list[Region] = []
        try:
            for region in self.regions:
                container.map(region.virt, region.iova, region.size)
                mapped.append(region)
        except BaseException as error:
            for region in mapped:
                try:
                    container.unmap(region.iova, region.size)
                except errors.UnmapFailed as left:
                    error.add_note(f"left mapped: {left}")
            raise
        self._iovas = iovas
        self.container = container

    def detach(self) -> None:
        """Unmap everything and forget the container. User mappings end (D10); owned memory keeps its IOVA.

        Every region is tried, whatever happens to another (R1).

        Raises:
            UnmapFailed: The kernel refused one or more; the container is forgotten all the same.
        """
        container, self.container = self.container, None
        if container is None:
            return
        failures: list[errors.UnmapFailed] = []
        for region in self.regions:
            try:
                container.unmap(region.iova, region.size)
            except errors.UnmapFailed as error:
                failures.append(error)
            if not region.owned:
                self.regions.remove(region)
                self._iovas.release(region.iova, region.size)
        container.close()
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"also: {other}")
            raise failures[0]

    def enter(self, region: Region, alignment: int = IOVA_SLAB_SIZE) -> None:
        """Give a region an IOVA, a DMA mapping and translations, or nothing of it.

        Args:
            region: Overlaps no live region; its `iova` is set.
            alignment: Of the IOVA, in bytes; at least 2 MiB is used.

        Raises:
            NoIovaSpace: No gap is large enough.
            MapFailed: The kernel refused. The next attempt uses other IOVAs.
        """
        region.iova = self._iovas.allocate(region.size, alignment)
        if self.container is not None:
            try:
                self.container.map(region.virt, region.iova, region.size)
            except BaseException:
                self._iovas.release(region.iova, region.size)
                raise
        self.regions.add(region)

    def leave(self, region: Region) -> int:
        """End a region: DMA mapping first, then translations and IOVA, so that neither outlives the other.

        Returns:
            How many bytes the kernel unmapped: `region.size`, or less when somebody beside USDM had unmapped them.

        Raises:
            UnmapFailed: The kernel refused. The region is as before (D6: its IOVA is not given to anybody).
        """
        removed = region.size
        if self.container is not None:
            removed = self.container.unmap(region.iova, region.size)
        self.regions.remove(region)
        self._iovas.release(region.iova, region.size)
        return removed

    def forget(self, region: Region) -> None:
        """End a region whose DMA mapping has ended otherwise."""
        self.regions.remove(region)
        self._iovas.release(region.iova, region.size)
