"""The process's DMA address space: regions, their IOVAs, and the container that maps them."""

from __future__ import annotations

import errno
from _operator import attrgetter  # what operator wraps, without its import

from usdm import errors
from usdm.entries import Entries
from usdm.frames import Frames
from usdm.iova import IovaSpace
from usdm.kernel import Kernel
from usdm.limits import IOVA_SLAB_SIZE
from usdm.regions import USER, RegionTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.container import AttachedContainer
    from usdm.dma_domain import Domain
    from usdm.regions import Region


class AddressSpace:
    """Regions, IOVAs and DMA mappings, changed together or not at all.

    Without a container regions have an IOVA but no DMA mapping; `attach` maps them. In a container without an IOMMU
    they have no DMA mapping either, and the IOVA of one that is made there is its physical address.

    Attributes:
        regions: The live regions.
        entries: The entries of `icp_sal_iommu`.
        frames: Looks up physical addresses.
        container: The container that maps them, or None.
        dma: The ranges of `usdm.dma_iova` in the container; None before the first one.
        maps_users: Memory of the program can be mapped: there is a container with an IOMMU, and it is allowed.
        maps: How many mappings of the program's memory were made.
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        self.regions = RegionTable()
        self.frames = Frames(kernel or Kernel())
        self.entries = Entries(self, self.frames)
        self.container: AttachedContainer | None = None
        self.dma: Domain | None = None
        self.maps_users = False
        self.maps = 0
        self._virts, self._units = self.regions.virts, self.regions.iovas
        self._iovas = IovaSpace()
        self._tables: AttachedContainer | None = None  # the container, when it has an IOMMU to map in
        self._physical: set[int] = set()  # IOVAs of regions that are physical addresses, not taken from `_iovas`

    @property
    def physical_only(self) -> bool:
        """There is a container, and it has no IOMMU: an IOVA must be a physical address."""
        return self.container is not None and self._tables is None

    @property
    def iovas(self) -> IovaSpace:
        """Which IOVAs are free."""
        return self._iovas

    def attach(self, container: AttachedContainer, *, users: bool = True) -> None:
        """Map every region into a container, each at the IOVA it has. After a failure none is mapped (R1).

        Args:
            container: The container.
            users: Memory of the program may be mapped too.

        Raises:
            IovaOutOfRange: The container cannot translate the IOVA of a region.
            MapFailed: The kernel refused a mapping.
            NoIommuMode: The container has no IOMMU, and memory has an IOVA that is not its physical address.
        """
        if container.no_iommu:
            self._only_physical(container)
            self.container = container
            return
        # A new space from the ranges of this container, before anything else uses them (D11, D12).
        iovas = IovaSpace(container.iova_ranges, self._iovas.cursor)
        regions = sorted(self.regions.owned.values(), key=attrgetter("iova"))
        for iova, size in _spans(regions):
            if not iovas.reserve(iova, size):
                raise errors.IovaOutOfRange("fd", container.fd, f"IOVA {iova:#x}, size {size:#x}")
        mapped = 0
        try:
            for region in regions:
                container.map(region.virt, region.iova, region.size)
                mapped += 1
        except BaseException as error:
            for region in regions[:mapped]:
                try:
                    container.unmap(region.iova, region.size)
                except errors.UnmapFailed as left:
                    error.add_note(f"left mapped: {left}")
            raise
        self._iovas = iovas
        self._physical.clear()
        self.container = self._tables = container
        self.maps_users = users

    def _only_physical(self, container: AttachedContainer) -> None:
        """Look whether the IOVA of each region, which the program may have stored anywhere, is its physical address."""
        for region in self.regions:
            if region.iova not in self._physical:
                detail = f"memory at {region.virt:#x} was allocated before, with the IOVA {region.iova:#x}; free it"
                raise errors.NoIommuMode("fd", container.fd, f"{detail}, and allocate after the registration")

    def detach(self) -> None:
        """Unmap everything and forget the container. User mappings end (D10); owned memory keeps its IOVA.

        Every region is tried, whatever happens to another (R1).

        Raises:
            UnmapFailed: The kernel refused one or more; the container is forgotten all the same.
        """
        self.maps_users = False
        container, self.container, self._tables = self.container, None, None
        if container is None:
            return
        if container.no_iommu:
            container.close()
            return
        failures: list[errors.UnmapFailed] = []
        if self.dma is not None:
            failures += self.dma.end(errors.NotRegistered("fd", container.fd, "the last registration has ended"))
            self.dma = None
        failures += self.entries.end(container)
        for region in self.regions:
            try:
                container.unmap(region.iova, region.size)
            except errors.UnmapFailed as error:
                failures.append(error)
            if not region.owned:
                self.forget(region)
        container.close()
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"also: {other}")
            raise failures[0]

    def map(self, virt: int, size: int) -> int:
        """Map memory of the program and return its IOVA. There is a container with an IOMMU.

        Raises:
            AlreadyMapped, AllocatedMemory, AddressNotAccessible, NoIovaSpace, MapFailed: As `Usdm.map`.
        """
        piece, end, iovas = virt >> 21, virt + size, self._iovas
        # Within 2 MiB of virtual addresses that have no other region: nothing to look through.
        alone = piece not in self._virts and (end - 1) >> 21 == piece
        if not alone:
            other = self.regions.overlapping(virt, size)
            if other is not None:
                kind = errors.AllocatedMemory if other.owned else errors.AlreadyMapped
                raise kind("virt", virt, f"{other.virt:#x}, size {other.size:#x}, is in use")
        unit = iovas.next_unit
        if alone and unit < iovas.hole_end:
            iovas.next_unit = unit + 1
            iova = unit << 21
        else:
            iova = iovas.allocate(size)
            unit = iova >> 21
        try:
            self.container.map(virt, iova, size)  # type: ignore[union-attr]  # the caller looked
        except BaseException:
            iovas.release(iova, size)
            raise
        entry = (virt, end, iova - virt, None, USER)
        if alone:
            self._virts[piece] = self._units[unit] = entry
        else:
            self.regions.enter(entry)
        self.maps = count = self.maps + 1
        if count & 4095 == 0:
            iovas.put_back()
        return iova

    def unmap(self, virt: int, size: int) -> bool:
        """End a mapping of the program's memory; tell whether there was exactly this one (otherwise nothing changes).

        Raises:
            UnmapFailed: As `Usdm.unmap`.
        """
        piece, container = virt >> 21, self.container
        entry = self._virts.get(piece)
        if entry is None or entry[0] != virt or entry[1] != virt + size or entry[4] is not USER:
            entry = self.regions.entry_at(virt)  # of several regions that share the 2 MiB
            if entry is None or entry[0] != virt or entry[1] != virt + size or entry[4] is not USER:
                return False
        iova = virt + entry[2]
        removed = size if container is None else container.unmap(iova, size)
        if (entry[1] - 1) >> 21 == piece and self._virts[piece] is entry:
            unit = iova >> 21
            del self._virts[piece], self._units[unit]
            self._iovas.released_units.append(unit)
        else:
            self.regions.leave(entry)
            self._iovas.release(iova, size)
        if removed != size:
            detail = f"{removed:#x} of {size:#x} bytes at IOVA {iova:#x} were unmapped"
            raise errors.UnmapFailed("virt", virt, errno.ENOENT, detail)
        return True

    def refusal(self, virt: int, size: int) -> errors.UsdmError:
        """Return why `unmap` did nothing."""
        region = self.regions.at_virt(virt)
        if region is None:
            return errors.NotMapped("virt", virt)
        if region.owned:
            return errors.AllocatedMemory("virt", virt)
        if region.virt != virt:
            return errors.InteriorPointer("virt", virt, f"the mapping starts at {region.virt:#x}")
        return errors.SizeMismatch("size", size, f"mapped were {region.size:#x}")

    def enter(self, region: Region, alignment: int = IOVA_SLAB_SIZE) -> None:
        """Give a region an IOVA, a DMA mapping and translations, or nothing of it.

        Args:
            region: Overlaps no live region; its `iova` is set.
            alignment: Of the IOVA, in bytes; at least 2 MiB is used.

        Raises:
            NoIovaSpace: No gap is large enough.
            MapFailed, AddressNotAccessible: The kernel refused. The next attempt uses other IOVAs.
            NotContiguous, PageNotPresent, PhysicalAddressHidden: Without an IOMMU: the memory's place will not do.
        """
        if self.physical_only:
            step = max(alignment, IOVA_SLAB_SIZE)
            region.iova = self.frames.contiguous(region.virt, region.size, IOVA_SLAB_SIZE, step)
            self._physical.add(region.iova)
        else:
            iova = region.iova = self._next_iova(region.size, alignment)
            if self._tables is not None:
                try:
                    self._tables.map(region.virt, iova, region.size)
                except BaseException:
                    self._iovas.release(iova, region.size)
                    raise
        self.regions.add(region)

    def _next_iova(self, size: int, alignment: int) -> int:
        """Take an IOVA. A physical address, which a region has as its IOVA, is not given to another one as well."""
        passed: list[int] = []
        try:
            while True:
                iova = self._iovas.allocate(size, alignment)
                units = range(iova // IOVA_SLAB_SIZE, -(-(iova + size) // IOVA_SLAB_SIZE))
                if not self._physical or self.regions.iovas.keys().isdisjoint(units):
                    return iova
                passed.append(iova)
        finally:
            for iova in passed:
                self._iovas.release(iova, size)

    def leave(self, region: Region) -> int:
        """End a region: DMA mapping first, then translations and IOVA, so that neither outlives the other.

        Returns:
            How many bytes the kernel unmapped: `region.size`, or less when somebody beside USDM had unmapped them.

        Raises:
            UnmapFailed: The kernel refused. The region is as before (D6: its IOVA is not given to anybody).
        """
        removed = region.size
        if self._tables is not None:
            removed = self._tables.unmap(region.iova, removed)
        self.forget(region)
        return removed

    def forget(self, region: Region) -> None:
        """End a region whose DMA mapping has ended otherwise."""
        self.regions.remove(region)
        self._release(region)

    def forget_all(self) -> None:
        """End all regions. There must be no container any more."""
        for region in self.regions:
            self._release(region)
        self.regions.clear()

    def _release(self, region: Region) -> None:
        if region.iova in self._physical:
            self._physical.remove(region.iova)
        else:
            self._iovas.release(region.iova, region.size)


def _spans(regions: list[Region]) -> list[tuple[int, int]]:
    """Return IOVA and size of what regions, ascending by IOVA, take together."""
    spans: list[tuple[int, int]] = []
    start = end = 0
    for region in regions:
        if region.iova != end:
            spans.append((start, end - start))
            start = region.iova
        end = region.iova + (-(-region.size // IOVA_SLAB_SIZE) * IOVA_SLAB_SIZE)
    spans.append((start, end - start))
    return spans[1:]
