"""USDM for Python: allocate DMA-able memory, map memory of the program, translate.

`usdm.qae_mem` is the same with the names and return values of C.

The methods that programs call often begin with a short way that takes the usual case and makes few checks. Whatever is
unusual, wrong or refused goes the long way, which makes every check in the documented order.
"""

from __future__ import annotations

from _thread import get_ident  # what threading wraps, without its imports
from bisect import bisect_left

from usdm import check, errors
from usdm.limits import MAX_MAPPING
from usdm.remap import Remapping

_TOP = 1 << 62  # an address below and 2 GiB more are far from the end of the address space


class Usdm(Remapping):
    """One process's USDM state: at most one registered container, allocations, user mappings, entries of `remap`.

    All methods may be called from any thread; one lock is around each change of regions (T1 of the C library:
    registration took none). Translations, and blocks used again, need no lock. A forked child of a process that has
    memory or a registration is refused with `ForkedChild` in every method until it calls `at_fork` (F1, F2).
    `allocate_plain` and `free_plain` are ordinary memory and work in a child too.

    Allocation before registration: memory gets its IOVA at once, from the ranges that every IOMMU in use has
    (`limits.DEFAULT_IOVA_RANGES`), and its DMA mapping when a container is registered. An IOVA that was told is never
    changed: when a container cannot translate it, the registration is refused (`IovaOutOfRange`), because the program
    may have stored the IOVA anywhere. After the last unregistration memory keeps its IOVA in the same way, and is
    mapped there into the next container.

    A container without an IOMMU (`AttachedContainer.no_iommu`): a device reaches all memory by physical addresses. So
    memory comes from hugepages, its IOVA is its physical address, and nothing can be mapped. Memory allocated before
    has another IOVA, with which devices would hit memory of others: the registration is refused (`NoIommuMode`).
    """

    # ---- allocation

    def allocate(self, size: int, node: int = -1, alignment: int = 4096) -> int:
        """Allocate memory that is contiguous for devices.

        Args:
            size: Bytes, 1 to 64 MiB.
            node: NUMA node that all of the memory comes from, -1 for any (the C library does not look at it, N1).
            alignment: Of the IOVA, in bytes: a power of two, 1 to 4 MiB. The virtual address is a multiple of it
                too, up to 1 MiB in blocks below 2 MiB, and up to 4 KiB otherwise.

        Returns:
            The virtual address. Its content is not defined. The memory is not inherited by forked children.

        Raises:
            BadArgument: An argument is no integer of its C type.
            BadSize: `size` is 0.
            TooLarge: `size` exceeds 64 MiB.
            BadAlignment: `alignment` is 0, not a power of two, or exceeds 4 MiB.
            NoSuchNode: The node does not exist, or has no memory.
            NoMemory: The kernel gave none, or the node has not enough.
            HugepagesNotConfigured: Hugepage mode was asked for, and the kernel has no hugepages.
            HugepageQuota: The process has as many hugepages as it may.
            HugepagesExhausted: The kernel has no free hugepage.
            NoIovaSpace: No gap of the IOVA space is large enough.
            MapFailed: VFIO refused the mapping.
            HugepagesNeeded: The registered container has no IOMMU, and the process has no hugepages.
            NotContiguous: There is no IOMMU, and the hugepages of 2 MiB and more are not contiguous.
            PhysicalAddressHidden: There is no IOMMU, and the process cannot see its physical addresses.
            ForkedChild: The state belongs to the parent process.
        """
        try:
            if type(size) is int and type(node) is int and type(alignment) is int:
                block = self._queues[size, node, alignment].pop()
                block.live[block.span] = block.ones
                block.siblings[block.address] = block
                return block.address
        except (KeyError, IndexError):
            pass  # no such block waits
        size, node, alignment = check.allocation(size, node, alignment)
        with self._lock:
            chosen = self._begin()
            self._pages.check()
            if not self._pages.quota:
                self._refuse_no_iommu("size", size, errors.HugepagesNeeded)
            return self._heap.allocate(size, node, alignment, get_ident() if chosen.thread_specific else 0)

    def free(self, address: int, zero: bool = True) -> None:
        """Free what `allocate` returned.

        Blocks below 2 MiB go back to a slab that can stay mapped for the next allocation; from 2 MiB the device's
        access ends here. Translations end in both cases. A refused free changes nothing.

        Args:
            address: What `allocate` returned.
            zero: Clear the memory first.

        Raises:
            BadArgument: `address` is no 64-bit integer.
            NullAddress: It is NULL.
            InteriorPointer: It lies inside an allocation.
            DoubleFree: It has been freed already.
            NotAllocated: It was never handed out.
            UnmapFailed: VFIO refused; the allocation stays.
            ForkedChild: The state belongs to the parent process.
        """
        try:
            block = self._virts[address >> 21][4].pop(address)
        except (KeyError, TypeError):
            self._free_large(address)
            return
        block.live[block.span] = block.none
        if zero:
            if block.view is not None:
                block.view[:] = block.zeros
            else:
                block.clear()
        if block.siblings or self._heap.few:
            block.queue.append(block)
        else:
            with self._lock:
                self._heap.give_back(block)

    def _free_large(self, address: int) -> None:
        """Free what is no block, or say why it cannot be freed."""
        address = check.address("ptr", address)
        with self._lock:
            self._begin()
            self._heap.free_large(address)

    # ---- mapping of the program's own memory

    def map(self, virt: int, size: int) -> int:
        """Map memory of the program for reads and writes of devices.

        The memory must stay valid until `unmap`. The checks are those of the specification's list of failure
        conditions, in its order; a refused call changes nothing.

        Args:
            virt: Virtual address, a multiple of 4 KiB, or of 2 MiB in hugepage mode.
            size: Bytes, a multiple of the same, up to 2 GiB inclusive.

        Returns:
            The first IOVA, a multiple of 2 MiB, never 0.

        Raises:
            Unsupported: In thread-specific mode.
            BadArgument: An argument is no 64-bit integer.
            NullAddress: `virt` is NULL.
            BadSize: `size` is 0.
            TooLarge: `size` exceeds 2 GiB.
            NotAligned: `virt` or `size` is not a multiple of 4 KiB, or of 2 MiB in hugepage mode.
            NoIommuMode: The registered container has no IOMMU.
            NotRegistered: No container is registered.
            AlreadyMapped: The range overlaps a live mapping (D4, D5: both would break).
            AllocatedMemory: The range overlaps memory of `allocate`.
            AddressNotAccessible: Part of the range is not mapped in this process.
            NoIovaSpace: No gap of the IOVA space is large enough.
            TooManyMappings: The container has its 65,535 mappings.
            LockedMemoryLimit: RLIMIT_MEMLOCK does not allow it.
            MapFailed: VFIO refused otherwise (read-only memory …).
            ForkedChild: The state belongs to the parent process.
        """
        try:
            try:
                if not (virt | size) & self._offset and 0 < size <= MAX_MAPPING and 0 < virt < _TOP:
                    # A with statement takes twice as long.
                    lock = self._lock
                    lock.acquire()
                    try:
                        if self._space.maps_users:
                            return self._space.map(virt, size)
                    finally:
                        lock.release()
            except TypeError as error:
                if isinstance(error, errors.UsdmError):
                    raise
            virt, size = self._check_mapping(virt, size)
            with self._lock:
                self._begin()
                self._refuse_no_iommu("virt", virt)
                if self._space.container is None:
                    raise errors.NotRegistered("virt", virt)
                return self._space.map(virt, size)
        except errors.UsdmError:
            self._failed += 1
            raise

    def unmap(self, virt: int, size: int) -> None:
        """End a mapping of `map`: the device's access, the translations, and the use of the IOVA.

        Only exactly what was mapped can be unmapped, so no other mapping is ever touched (D2, D6, D7, D8, D9 of the C
        library). No registration is asked for: after the last unregistration nothing is mapped.

        Args:
            virt: The address given to `map`.
            size: The size given to `map`.

        Raises:
            Unsupported, BadArgument, NullAddress, BadSize, TooLarge, NotAligned: As `map`.
            NoIommuMode: The registered container has no IOMMU.
            NotMapped: Nothing is mapped there.
            AllocatedMemory: It is memory of `allocate`, which `free` unmaps.
            InteriorPointer: It lies inside a mapping, but is not its start.
            SizeMismatch: The mapping has another size.
            UnmapFailed: VFIO refused, and the mapping is as before; or (ENOENT) it was not there any more because
                somebody unmapped it beside USDM, and it is forgotten.
            ForkedChild: The state belongs to the parent process.
        """
        try:
            try:
                if type(size) is int:
                    lock = self._lock
                    lock.acquire()
                    try:
                        # What is mapped has gone through all checks.
                        if self._space.unmap(virt, size):
                            return
                    finally:
                        lock.release()
            except TypeError as error:
                if isinstance(error, errors.UsdmError):
                    raise
            virt, size = self._check_mapping(virt, size)
            with self._lock:
                self._begin()
                self._refuse_no_iommu("virt", virt)
                if not self._space.unmap(virt, size):
                    raise self._space.refusal(virt, size)
        except errors.UsdmError:
            self._failed += 1
            raise

    # ---- translation

    def virt_to_phys(self, address: int) -> int:
        """Return the IOVA of a virtual address inside an allocation or a mapping.

        Memory that is allocated but not mapped yet, because nothing is registered, has its IOVA already.

        Raises:
            BadArgument: `address` is no 64-bit integer.
            NullAddress: It is NULL.
            NotMapped: No live allocation or mapping holds it.
            ForkedChild: The state belongs to the parent process.
        """
        try:
            low, high, distance, live, _ = self._virts[address >> 21]
            if low <= address < high and (live is None or live[address - low >> 10]):
                return address + distance
            if high == 0:  # several regions share these 2 MiB
                entries = self._shared[address >> 21]
                low, high, distance, _, _ = entries[bisect_left(entries, (address + 1,)) - 1]
                if low <= address < high:
                    return address + distance
        except (KeyError, IndexError, TypeError):
            pass
        address = check.address("pVirtAddr", address)
        with self._lock:
            self._begin()
            # The short way can have met a change of another thread.
            entry = self._space.regions.entry_at(address)
        if entry is None or (entry[3] is not None and not entry[3][address - entry[0] >> 10]):
            raise errors.NotMapped("pVirtAddr", address)
        return address + entry[2]

    def phys_to_virt(self, iova: int) -> int:
        """Return the virtual address of an IOVA inside an allocation or a mapping, of every kind (A2).

        Raises:
            BadArgument: `iova` is no 64-bit integer.
            NullAddress: It is 0.
            NotMapped: No live allocation or mapping holds it.
            ForkedChild: The state belongs to the parent process.
        """
        try:
            low, high, distance, live, _ = self._iovas[iova >> 21]
            address = iova - distance
            if low <= address < high and (live is None or live[address - low >> 10]):
                return address
        except (KeyError, TypeError):
            pass
        iova = check.address("physAddress", iova)
        with self._lock:
            self._begin()
        raise errors.NotMapped("physAddress", iova)

    def _check_mapping(self, virt: int, size: int) -> tuple[int, int]:
        with self._lock:
            # A child of a process that used it is refused below, after the arguments.
            chosen = self._given if self._parent else self._begin()
        if chosen.thread_specific:
            raise errors.Unsupported("virt", virt, "map and unmap in thread-specific mode")
        return check.mapping(virt, size, self._offset + 1)

    def _refuse_no_iommu(self, argument: str, value: int, kind: type[errors.NoIommuMode] = errors.NoIommuMode) -> None:
        container = self._space.container
        if container is not None and container.no_iommu:
            raise kind(argument, value)
