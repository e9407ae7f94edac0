"""DMA-able memory that USDM allocates: blocks in slabs, and large allocations."""

from __future__ import annotations

from usdm import contiguous, errors
from usdm.limits import CACHE_SIZE, IOVA_SLAB_SIZE, PAGE_SIZE, UNIT
from usdm.regions import LargeAllocation
from usdm.slab import Block, Slab

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.pages import Pages
    from usdm.regions import Region
    from usdm.space import AddressSpace

    Owner = tuple[int, int]  # NUMA node, thread (0: any)

_REMEMBERED = 4096
_REQUESTS = 1024
_CACHED = CACHE_SIZE // IOVA_SLAB_SIZE


class Heap:
    """Allocates from slabs below 2 MiB, and with pages of its own from 2 MiB (of size or alignment).

    Freed blocks wait in queues, one for each request (size, node, alignment), and serve the next equal request at once
    and without the lock. Before a new slab is made, all that wait go back to their slabs. Empty slabs up to 8 MiB are
    kept mapped for the next allocation. All slabs with free room are searched, so old free room is never lost.

    Attributes:
        queues: Blocks that wait, by request. Never replaced, and no queue is taken away.
        few: There are no more slabs than the cache may keep, so none has to be given back.
    """

    def __init__(self, space: AddressSpace, pages: Pages) -> None:
        self.queues: dict[tuple[int, int, int], list[Block]] = {}
        self.few = True
        self._others: list[Block] = []  # the queue of requests that have none of their own
        self._space = space
        self.pages = pages
        self._with_room: dict[Owner, dict[Slab, None]] = {}  # slabs that are not full, oldest first
        self._cache: list[Slab] = []
        self._count = 0
        self._freed: dict[int, None] = {}  # addresses freed and not waiting, to tell a double free

    @property
    def slabs(self) -> int:
        """How many slabs there are."""
        return self._count

    @property
    def cached(self) -> int:
        """How many of them are empty and kept."""
        return len(self._cache)

    def allocate(self, size: int, node: int, alignment: int, thread: int = 0) -> int:
        """Return the virtual address of `size` bytes whose IOVA is a multiple of `alignment`.

        Args:
            size: Bytes.
            node: NUMA node, -1 for any.
            alignment: Of the IOVA, in bytes.
            thread: Whose slabs are used; 0 for those of all threads.

        Raises:
            NoSuchNode: There is no such node, or it has no memory.
            NoMemory, HugepageQuota, HugepagesExhausted, HugepagesNotConfigured: The kernel gave none.
            NoIovaSpace: No gap of the IOVA space is large enough.
            MapFailed: VFIO refused the mapping.
            NotContiguous, PageNotPresent, PhysicalAddressHidden: The container has no IOMMU, and the memory's place in
                physical memory will not do, or is not told.
        """
        self.pages.check_node(node)
        if size >= IOVA_SLAB_SIZE or alignment >= IOVA_SLAB_SIZE:
            held = -(-size // self.pages.unit) * self.pages.unit
            address = self._memory(held, node)
            if self._space.physical_only:
                address = contiguous.arrange(self.pages, self._space.frames, address, held, node, alignment)
            region = LargeAllocation(address, held, node, size)
            self._enter(region, alignment)
            self._freed.pop(region.virt, None)
            return region.virt
        length = -(-size // UNIT)
        slab, start = self._room(length, max(1, alignment // UNIT), (node, thread))
        block = Block(slab, start, length, size, self._queue(size, node, alignment, thread))
        block.live[block.span] = block.ones
        slab.blocks[block.address] = block
        self._freed.pop(block.address, None)
        return block.address

    def free_large(self, address: int) -> None:
        """Free a large allocation; a refused free changes nothing.

        Raises:
            InteriorPointer: The address lies inside an allocation of any kind (A3: nothing is freed).
            DoubleFree: It has been freed already.
            NotAllocated: It was never handed out.
            UnmapFailed: VFIO refused to unmap the allocation, which stays.
        """
        region = self._space.regions.at_virt(address)
        if not isinstance(region, LargeAllocation) or address != region.virt:
            raise self._refusal(address, region)
        # Unmapped before its pages go: the device never reaches memory that the process has no more.
        self._space.leave(region)
        self.pages.free(region.virt, region.size)
        self._remember(address)

    def give_back(self, block: Block) -> None:
        """Free the units of a block that is in use no more, and its slab when it is the last one."""
        self._return(block)
        if not block.siblings and not block.slab.empty:
            self._collect()

    def drop_cache(self) -> None:
        """Give the empty slabs back. One that VFIO refuses to unmap stays in the cache, usable."""
        self._collect()
        self._cache = [slab for slab in self._cache if not self._destroy(slab)]

    def destroy(self) -> None:
        """Give all memory back. There must be no container any more."""
        regions = [region for region in self._space.regions if region.owned]
        self._space.forget_all()
        self.queues.clear()
        self._others = []
        self._with_room.clear()
        self._cache.clear()
        self._freed.clear()
        self._counted(-self._count)
        for region in regions:
            self.pages.free(region.virt, region.size)
        self.pages.retry()

    def waiting(self) -> int:
        """Return how many freed blocks wait for an equal request."""
        return sum(map(len, [*self.queues.values(), self._others]))

    def _queue(self, size: int, node: int, alignment: int, thread: int) -> list[Block]:
        request = size, node, alignment
        if thread or (request not in self.queues and len(self.queues) >= _REQUESTS):
            return self._others
        return self.queues.setdefault(request, [])

    def _memory(self, size: int, node: int, boundary: int = PAGE_SIZE) -> int:
        """Take pages; when there are none, what is kept for later goes back first."""
        try:
            return self.pages.allocate(size, node, boundary)
        except (errors.NoMemory, errors.HugepageQuota, errors.HugepagesExhausted):
            before = self._count
            self.drop_cache()
            if self._count == before:
                raise
            return self.pages.allocate(size, node, boundary)

    def _enter(self, region: Region, alignment: int) -> None:
        try:
            self._space.enter(region, alignment)
        except BaseException:
            self.pages.free(region.virt, region.size)
            raise

    def _room(self, length: int, step: int, owner: Owner) -> tuple[Slab, int]:
        found = self._search(length, step, owner)
        if found is None and self._collect():
            found = self._search(length, step, owner)
        if found is not None:
            return found
        slab = self._cached_slab(owner[0])
        if slab is None:
            slab = Slab(self._memory(IOVA_SLAB_SIZE, owner[0], IOVA_SLAB_SIZE), owner[0])
            self._enter(slab, IOVA_SLAB_SIZE)
            self._counted(1)
        slab.owner = owner
        start = slab.take(length, step) or 0  # an empty slab has room at its start
        if not slab.full:
            self._with_room.setdefault(owner, {})[slab] = None
        return slab, start

    def _search(self, length: int, step: int, owner: Owner) -> tuple[Slab, int] | None:
        slabs = self._with_room.get(owner, {})
        for slab in slabs:
            start = slab.take(length, step)
            if start is not None:
                if slab.full:
                    del slabs[slab]
                return slab, start
        return None

    def _cached_slab(self, node: int) -> Slab | None:
        for index in range(len(self._cache) - 1, -1, -1):
            if self._cache[index].node == node:
                return self._cache.pop(index)
        return None

    def _collect(self) -> bool:
        """Return all blocks that wait to their slabs; tell whether there were any."""
        found = False
        for queue in [*self.queues.values(), self._others]:
            # Another thread may take blocks from the same queue meanwhile.
            while queue:
                try:
                    block = queue.pop()
                except IndexError:
                    break
                self._return(block)
                found = True
        return found

    def _return(self, block: Block) -> None:
        slab = block.slab
        block.give_back()
        self._remember(block.address)
        slabs = self._with_room.setdefault(slab.owner, {})
        if not slab.empty:
            slabs[slab] = None
            return
        slabs.pop(slab, None)
        # A slab that cannot be given back now is kept: the block is free in both cases.
        if len(self._cache) < _CACHED or not self._destroy(slab):
            self._cache.append(slab)

    def _destroy(self, slab: Slab) -> bool:
        try:
            self._space.leave(slab)
        except errors.UnmapFailed:
            return False
        self.pages.free(slab.virt, slab.size)
        self._counted(-1)
        return True

    def _counted(self, change: int) -> None:
        self._count += change
        self.few = self._count <= _CACHED

    def _remember(self, address: int) -> None:
        self._freed[address] = None
        if len(self._freed) > _REMEMBERED:
            del self._freed[next(iter(self._freed))]

    def _refusal(self, address: int, region: Region | None) -> errors.UsdmError:
        start = None
        if isinstance(region, LargeAllocation):
            start = region.virt
        elif isinstance(region, Slab):
            inside = (
                b.address for b in list(region.blocks.values()) if b.address <= address < b.address + b.length * UNIT
            )
            start = next(inside, None)
        if start is not None:
            return errors.InteriorPointer("ptr", address, f"the allocation starts at {start:#x}")
        waiting = any(
            block.address == address for queue in [*self.queues.values(), self._others] for block in list(queue)
        )
        if waiting or address in self._freed:
            return errors.DoubleFree("ptr", address)
        detail = "it lies in a mapping of the program's own memory" if region is not None and not region.owned else ""
        return errors.NotAllocated("ptr", address, detail)
