"""DMA-able memory that USDM allocates: blocks in slabs, and large allocations."""

from __future__ import annotations

from usdm import errors, memory
from usdm.limits import CACHE_SIZE, IOVA_SLAB_SIZE, PAGE_SIZE, UNIT
from usdm.regions import LargeAllocation
from usdm.slab import Slab

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.regions import Region
    from usdm.space import AddressSpace

_REMEMBERED = 4096


class Heap:
    """Allocates from slabs below 2 MiB, and with pages of its own from 2 MiB (of size or alignment).

    Empty slabs up to 8 MiB are kept mapped for the next allocation. All slabs with free room are searched, so old free
    room is never lost.
    """

    def __init__(self, space: AddressSpace) -> None:
        self._space = space
        self._with_room: dict[Slab, None] = {}  # used slabs that are not full, oldest first
        self._cache: list[Slab] = []
        self._freed: dict[int, None] = {}  # the addresses freed last, to tell a double free

    def allocate(self, size: int, alignment: int) -> int:
        """Return the virtual address of `size` bytes whose IOVA is a multiple of `alignment`.

        Raises:
            NoMemory: The kernel gave none.
            NoIovaSpace: No gap of the IOVA space is large enough.
            MapFailed: VFIO refused the mapping.
        """
        if size >= IOVA_SLAB_SIZE or alignment >= IOVA_SLAB_SIZE:
            pages = -(-size // PAGE_SIZE) * PAGE_SIZE
            address = self._enter(LargeAllocation(memory.allocate_pages(pages), pages), alignment)
        else:
            address = self._block(-(-size // UNIT), max(1, alignment // UNIT))
        self._freed.pop(address, None)
        return address

    def free(self, address: int, zero: bool) -> None:
        """Free an allocation; a refused free changes nothing.

        Args:
            address: What `allocate` returned.
            zero: Clear the memory, so that the next owner cannot read it.

        Raises:
            InteriorPointer: The address lies inside an allocation (A3: nothing is freed).
            DoubleFree: It has been freed already.
            NotAllocated: It was never handed out.
            UnmapFailed: VFIO refused to unmap a large allocation, which stays allocated.
        """
        region = self._space.regions.at_virt(address)
        if isinstance(region, Slab):
            self._free_block(region, address, zero)
        elif isinstance(region, LargeAllocation):
            if address != region.virt:
                raise errors.InteriorPointer("ptr", address, f"the allocation starts at {region.virt:#x}")
            # Unmapped before its pages go: the device never reaches memory that the process has no more.
            self._space.leave(region)
            memory.free_pages(region.virt, region.size)
        else:
            raise self._refusal(address, region)
        self._freed[address] = None
        if len(self._freed) > _REMEMBERED:
            del self._freed[next(iter(self._freed))]

    def drop_cache(self) -> None:
        """Give the empty slabs back. One that VFIO refuses to unmap stays in the cache, usable."""
        kept: list[Slab] = []
        for slab in self._cache:
            if not self._destroy(slab):
                kept.append(slab)
        self._cache = kept

    def destroy(self) -> None:
        """Give all memory back. There must be no container any more."""
        for region in self._space.regions:
            self._space.forget(region)
            if region.owned:
                memory.free_pages(region.virt, region.size)
        self._with_room.clear()
        self._cache.clear()
        self._freed.clear()

    def _enter(self, region: Region, alignment: int) -> int:
        try:
            self._space.enter(region, alignment)
        except BaseException:
            memory.free_pages(region.virt, region.size)
            raise
        return region.virt

    def _block(self, length: int, step: int) -> int:
        for slab in self._with_room:
            offset = slab.take(length, step)
            if offset is not None:
                if slab.full:
                    del self._with_room[slab]
                return slab.virt + offset
        if self._cache:
            slab = self._cache.pop()
        else:
            slab = Slab(memory.allocate_pages(IOVA_SLAB_SIZE))
            self._enter(slab, IOVA_SLAB_SIZE)
        offset = slab.take(length, step) or 0  # an empty slab has room at its start
        if not slab.full:
            self._with_room[slab] = None
        return slab.virt + offset

    def _free_block(self, slab: Slab, address: int, zero: bool) -> None:
        offset = address - slab.virt
        block = slab.block(offset)
        if block is None:
            raise self._refusal(address, slab)
        start, size = block
        if start != offset:
            raise errors.InteriorPointer("ptr", address, f"the allocation starts at {slab.virt + start:#x}")
        if zero:
            memory.clear(address, size)
        slab.give_back(offset)
        if not slab.empty:
            self._with_room[slab] = None
            return
        self._with_room.pop(slab, None)
        # A slab that cannot be given back now is kept: the block is free in both cases.
        if (len(self._cache) + 1) * IOVA_SLAB_SIZE <= CACHE_SIZE or not self._destroy(slab):
            self._cache.append(slab)

    def _destroy(self, slab: Slab) -> bool:
        try:
            self._space.leave(slab)
        except errors.UnmapFailed:
            return False
        memory.free_pages(slab.virt, slab.size)
        return True

    def _refusal(self, address: int, region: Region | None) -> errors.UsdmError:
        if address in self._freed:
            return errors.DoubleFree("ptr", address)
        detail = "it lies in a mapping of the program's own memory" if region is not None and not region.owned else ""
        return errors.NotAllocated("ptr", address, detail)
