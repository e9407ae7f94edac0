"""USDM for Python: allocate DMA-able memory, map memory of the program, translate.

`usdm.qae_mem` is the same with the names and return values of C.
"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock  # what threading wraps, without its imports

from usdm import check, errors, memory
from usdm.container import AttachedContainer
from usdm.heap import Heap
from usdm.regions import UserMapping
from usdm.space import AddressSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from usdm.container import Ioctl

_adoption = allocate_lock()


class Usdm:
    """One process's USDM state: at most one registered container, allocations, user mappings.

    All methods may be called from any thread; one lock is around each whole call (T1 of the C library: registration
    took none). A forked child of a process that has memory or a registration is refused with `ForkedChild` in every
    method, before the lock is touched, which another thread may have held at the fork (F1, F2). `allocate_plain` and
    `free_plain` are ordinary memory and work in a child too.

    Allocation before registration: memory gets its IOVA at once, from the ranges that every IOMMU in use has
    (`limits.DEFAULT_IOVA_RANGES`), and its DMA mapping when a container is registered. An IOVA that was told is never
    changed: when a container cannot translate it, the registration is refused (`IovaOutOfRange`), because the program
    may have stored the IOVA anywhere. After the last unregistration memory keeps its IOVA in the same way, and is
    mapped there into the next container.
    """

    def __init__(self, ioctl: Ioctl | None = None, *, hugepages: int = 0, thread_specific: bool = False) -> None:
        """Start with nothing registered and nothing allocated.

        Args:
            ioctl: Called as `fcntl.ioctl(fd, request, argument)`; another one in tests.
            hugepages: How many hugepages of 2 MiB the process may have; 0 is 4 KiB mode.
            thread_specific: Slabs are not shared between threads, and map and unmap are refused.
        """
        self._ioctl = ioctl
        self._plain: dict[int, None] = {}
        self._plain_freed: dict[int, None] = {}
        self._start()

    def _start(self) -> None:
        """Begin with a clean state that belongs to the calling process."""
        self._lock = allocate_lock()
        self._space = AddressSpace()
        self._heap = Heap(self._space)
        self._count = 0
        self._pid = os.getpid()

    def _locked(self) -> LockType:
        """Return the lock for a `with` statement, when the state belongs to this process.

        Raises:
            ForkedChild: It belongs to the parent.
        """
        pid = os.getpid()
        if self._pid != pid:
            with _adoption:
                # A parent that never used the state leaves it to its children.
                used = self._lock.locked() or self._count or len(self._space.regions)
                if self._pid != pid and used:
                    raise errors.ForkedChild("pid", pid, f"process {self._pid} owns it")
                if self._pid != pid:
                    self._start()
        return self._lock

    # ---- registration

    @property
    def registered(self) -> bool:
        """A container is registered."""
        return self._count > 0

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Usable IOVAs of the registered container, `(first, last)` with `last` inclusive; empty without one."""
        container = self._space.container
        return () if container is None else container.iova_ranges

    def register_device(self, fd: int) -> None:
        """Register a VFIO container; the first registration maps all memory allocated before.

        It is called once per device. The same container may be registered again, by the same or another descriptor
        of it, and must be unregistered as often.

        Args:
            fd: Descriptor of a container whose IOMMU type is set. USDM keeps a duplicate.

        Raises:
            BadArgument: `fd` is no integer of the C type int.
            NotAContainer: `fd` is closed, something else, or has no IOMMU type set.
            Unsupported: The VFIO API or the IOMMU's page sizes are others.
            WrongContainer: Another container is registered.
            IovaOutOfRange: The container cannot translate the IOVA of memory allocated before.
            NoIommuMode: The container has no IOMMU, and memory was allocated before.
            MapFailed: The kernel refused to map it. Nothing stays mapped, nothing is registered.
            ForkedChild: The state belongs to the parent process.
        """
        check.c_int("fd", fd)
        with self._locked():
            current = self._space.container
            if current is not None and current.is_same(fd):
                self._count += 1
                return
            container = AttachedContainer(fd, self._ioctl)
            try:
                if current is not None:
                    raise errors.WrongContainer("fd", fd, f"registered is {current.fd}")
                self._heap.drop_cache()
                self._space.attach(container)
            except BaseException:
                container.close()
                raise
            self._count = 1

    def unregister_device(self, fd: int) -> None:
        """Undo one registration. The last one unmaps everything.

        User mappings end then: they are unmapped and have no translation any more (D10 of the C library left the
        device its access). Allocations stay, with their IOVAs, for the next registration.

        Args:
            fd: The number that was registered (open or not), or another descriptor of the same container.

        Raises:
            BadArgument: `fd` is no integer of the C type int.
            NotRegistered: No container is registered.
            WrongContainer: Another container is registered.
            UnmapFailed: The kernel refused to unmap something; the registration has ended all the same.
            ForkedChild: The state belongs to the parent process.
        """
        check.c_int("fd", fd)
        with self._locked():
            container = self._space.container
            if container is None:
                raise errors.NotRegistered("fd", fd)
            if fd != container.fd and not container.is_same(fd):
                raise errors.WrongContainer("fd", fd, f"registered is {container.fd}")
            if self._count > 1:
                self._count -= 1
                return
            self._count = 0
            try:
                self._space.detach()
            finally:
                self._heap.drop_cache()

    # ---- allocation

    def allocate(self, size: int, node: int = -1, alignment: int = 4096) -> int:
        """Allocate memory that is contiguous for devices.

        Args:
            size: Bytes, 1 to 64 MiB.
            node: NUMA node, -1 for any. Accepted as in the C library, which does not look at it either (N1).
            alignment: Of the IOVA, in bytes: a power of two, 1 to 4 MiB. The virtual address is a multiple of it
                up to 1 KiB only.

        Returns:
            The virtual address. Its content is not defined. The memory is not inherited by forked children.

        Raises:
            BadArgument: An argument is no integer of its C type.
            BadSize: `size` is 0.
            TooLarge: `size` exceeds 64 MiB.
            BadAlignment: `alignment` is 0, not a power of two, or exceeds 4 MiB.
            NoMemory: The kernel gave none.
            NoIovaSpace: No gap of the IOVA space is large enough.
            MapFailed: VFIO refused the mapping.
            NoIommuMode: The registered container has no IOMMU: such memory would need hugepages.
            ForkedChild: The state belongs to the parent process.
        """
        size, alignment = check.allocation(size, node, alignment)
        with self._locked():
            self._refuse_no_iommu("size", size)
            return self._heap.allocate(size, alignment)

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
        address = check.address("ptr", address)
        with self._locked():
            self._heap.free(address, zero)

    def allocate_plain(self, size: int) -> int:
        """Allocate ordinary zeroed memory, which devices cannot reach without `map`.

        Args:
            size: Bytes; 0 gives an address too, as `calloc`.

        Raises:
            BadArgument: `size` is no 64-bit integer.
            NoMemory: The C library gave none.
        """
        address = memory.allocate_plain(check.integer("memsize", size))
        self._plain_freed.pop(address, None)
        self._plain[address] = None
        return address

    def free_plain(self, address: int) -> None:
        """Free what `allocate_plain` returned.

        Raises:
            BadArgument: `address` is no 64-bit integer.
            NullAddress: It is NULL.
            DoubleFree: It has been freed already.
            NotAllocated: It was never handed out.
        """
        address = check.address("ptr", address)
        try:
            del self._plain[address]
        except KeyError:
            kind = errors.DoubleFree if address in self._plain_freed else errors.NotAllocated
            raise kind("ptr", address) from None
        self._plain_freed[address] = None
        if len(self._plain_freed) > 1024:
            self._plain_freed.pop(next(iter(self._plain_freed)), None)
        memory.free_plain(address)

    # ---- mapping of the program's own memory

    def map(self, virt: int, size: int) -> int:
        """Map memory of the program for reads and writes of devices.

        The memory must stay valid until `unmap`. The checks are those of the specification's list of failure
        conditions, in its order; a refused call changes nothing.

        Args:
            virt: Virtual address, a multiple of 4 KiB.
            size: Bytes, a multiple of 4 KiB, up to 2 GiB inclusive.

        Returns:
            The first IOVA, a multiple of 2 MiB, never 0.

        Raises:
            BadArgument: An argument is no 64-bit integer.
            NullAddress: `virt` is NULL.
            BadSize: `size` is 0.
            TooLarge: `size` exceeds 2 GiB.
            NotAligned: `virt` or `size` is not a multiple of 4 KiB.
            NoIommuMode: The registered container has no IOMMU.
            NotRegistered: No container is registered.
            AlreadyMapped: The range overlaps a live mapping (D4, D5: both would break).
            AllocatedMemory: The range overlaps memory of `allocate`.
            AddressNotAccessible: Part of the range is not mapped in this process.
            NoIovaSpace: No gap of the IOVA space is large enough.
            MapFailed: VFIO refused (read-only memory, RLIMIT_MEMLOCK, 65,535 mappings …).
            ForkedChild: The state belongs to the parent process.
        """
        virt, size = check.mapping(virt, size)
        with self._locked():
            self._refuse_no_iommu("virt", virt)
            if self._space.container is None:
                raise errors.NotRegistered("virt", virt)
            other = self._space.regions.overlapping(virt, size)
            if other is not None:
                kind = errors.AllocatedMemory if other.owned else errors.AlreadyMapped
                raise kind("virt", virt, f"{other.virt:#x}, size {other.size:#x}, is in use")
            if not memory.is_accessible(virt, size):
                raise errors.AddressNotAccessible("virt", virt, f"size {size:#x}")
            region = UserMapping(virt, size)
            self._space.enter(region)
            return region.iova

    def unmap(self, virt: int, size: int) -> None:
        """End a mapping of `map`: the device's access, the translations, and the use of the IOVA.

        Only exactly what was mapped can be unmapped, so no other mapping is ever touched (D2, D6, D7, D8, D9 of the C
        library). No registration is asked for: after the last unregistration nothing is mapped.

        Args:
            virt: The address given to `map`.
            size: The size given to `map`.

        Raises:
            BadArgument, NullAddress, BadSize, TooLarge, NotAligned: As `map`.
            NoIommuMode: The registered container has no IOMMU.
            NotMapped: Nothing is mapped there.
            AllocatedMemory: It is memory of `allocate`, which `free` unmaps.
            InteriorPointer: It lies inside a mapping, but is not its start.
            SizeMismatch: The mapping has another size.
            UnmapFailed: VFIO refused, and the mapping is as before; or (ENOENT) it was not there any more because
                somebody unmapped it beside USDM, and it is forgotten.
            ForkedChild: The state belongs to the parent process.
        """
        virt, size = check.mapping(virt, size)
        with self._locked():
            self._refuse_no_iommu("virt", virt)
            region = self._space.regions.at_virt(virt)
            if region is None:
                raise errors.NotMapped("virt", virt)
            if region.owned:
                raise errors.AllocatedMemory("virt", virt)
            if region.virt != virt:
                raise errors.InteriorPointer("virt", virt, f"the mapping starts at {region.virt:#x}")
            if region.size != size:
                raise errors.SizeMismatch("size", size, f"mapped were {region.size:#x}")
            removed = self._space.leave(region)
            if removed != size:
                detail = f"{removed:#x} of {size:#x} bytes at IOVA {region.iova:#x} were unmapped"
                raise errors.UnmapFailed("virt", virt, errno.ENOENT, detail)

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
        address = check.address("pVirtAddr", address)
        with self._locked():
            region = self._space.regions.at_virt(address)
            if region is None or region.block(address - region.virt) is None:
                raise errors.NotMapped("pVirtAddr", address)
            return region.iova + (address - region.virt)

    def phys_to_virt(self, iova: int) -> int:
        """Return the virtual address of an IOVA inside an allocation or a mapping, of every kind (A2).

        Raises:
            BadArgument: `iova` is no 64-bit integer.
            NullAddress: It is 0.
            NotMapped: No live allocation or mapping holds it.
            ForkedChild: The state belongs to the parent process.
        """
        iova = check.address("physAddress", iova)
        with self._locked():
            region = self._space.regions.at_iova(iova)
            if region is None or region.block(iova - region.iova) is None:
                raise errors.NotMapped("physAddress", iova)
            return region.virt + (iova - region.iova)

    def close(self) -> None:
        """Unregister completely, and give all memory of `allocate` back.

        Raises:
            UnmapFailed: The kernel refused to unmap something; everything is given back all the same.
            ForkedChild: The state belongs to the parent process.
        """
        with self._locked():
            self._count = 0
            try:
                self._space.detach()
            finally:
                self._heap.destroy()

    def at_fork(self) -> None:
        """Give a forked child a clean state of its own; does nothing in any other process."""
        with _adoption:
            if self._pid != os.getpid():
                if self._space.container is not None:
                    self._space.container.close()
                self._start()

    def statistics(self) -> dict[str, int | str]:
        """Return what is in use, for people who debug."""
        with self._locked():
            return {"regions": len(self._space.regions), "registrations": self._count}

    def maps(self) -> list[dict[str, int | str]]:
        """Return one mapping a region."""
        with self._locked():
            return [{"virt": region.virt, "size": region.size, "iova": region.iova} for region in self._space.regions]

    def _refuse_no_iommu(self, argument: str, value: int) -> None:
        container = self._space.container
        if container is not None and container.no_iommu:
            raise errors.NoIommuMode(argument, value)
