"""The state of a process: its settings, its container, what a fork does to it."""

from __future__ import annotations

import os
from _thread import allocate_lock  # what threading wraps, without its imports

from usdm import check, errors, fork, report, settings
from usdm.container import AttachedContainer
from usdm.heap import Heap
from usdm.kernel import Kernel
from usdm.limits import PAGE_SIZE
from usdm.pages import Pages
from usdm.plain import PlainMemory
from usdm.settings import Settings
from usdm.space import AddressSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from usdm.dma_domain import Domain
    from usdm.kernel import Ioctl


class State(PlainMemory):
    """What `usdm.driver.Usdm` is, without memory and translations."""

    def __init__(
        self,
        ioctl: Ioctl | None = None,
        *,
        kernel: Kernel | None = None,
        hugepages: int = 0,
        thread_specific: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start with nothing registered and nothing allocated.

        Args:
            ioctl: Called as `fcntl.ioctl(fd, request, argument)`; another one in tests.
            kernel: All system calls; another one in tests. `ioctl` is not looked at then.
            hugepages: How many hugepages of 2 MiB the process may have, up to 65536; 0 is 4 KiB mode.
            thread_specific: Slabs are not shared between threads, and map and unmap are refused.
            environment: When given, `hugepages` and `thread_specific` are read from it at the first use
                (`usdm.settings`), and again after `close` and `at_fork`.

        Raises:
            BadArgument: `hugepages` is no integer of 0 to 65536.
        """
        super().__init__()
        check.integer("hugepages", hugepages, 0, settings.MAX_HUGEPAGES)
        self._kernel = kernel or Kernel(ioctl)
        self._environment = environment
        self._given = Settings(hugepages, thread_specific)
        self._parent = 0  # the process that the state belongs to, when this is a forked child
        self._inherited: AttachedContainer | None = None
        self._failed = 0
        self._start()
        fork.watch(self)

    def _start(self) -> None:
        """Begin with a clean state that belongs to the calling process."""
        self._pid = os.getpid()
        self._lock = allocate_lock()
        self._count = 0
        self._space = AddressSpace(self._kernel)
        self._pages = Pages(self._kernel)
        self._heap = Heap(self._space, self._pages)
        # Read by the short ways. Before something is allocated or registered there is no short way.
        self._virts = self._space.regions.virts
        self._iovas = self._space.regions.iovas
        self._shared = self._space.regions.shared
        self._queues = self._heap.queues
        self._offset = PAGE_SIZE - 1
        self._settings: Settings | None = None

    def _begin(self) -> Settings:
        """Begin a long way: return the settings, which the first use reads.

        Raises:
            ForkedChild: The state belongs to the parent process, and `at_fork` was not called.
        """
        if self._parent:
            raise errors.ForkedChild("pid", self._pid, f"process {self._parent} owns it")
        if self._settings is None:
            environment = self._environment
            self._settings = self._given if environment is None else settings.from_environment(environment)
            self._pages.configure(self._settings.hugepages)
            self._offset = self._pages.unit - 1
        return self._settings

    # ---- fork

    def _forked(self) -> None:
        """Have a clean state in a forked child, which it may use when its parent never used it."""
        used = self._lock.locked() or self._count or len(self._space.regions.iovas)
        parent, inherited = self._parent or self._pid, self._inherited or self._space.container
        if self._space.dma is not None:
            reason = errors.ForkedChild("pid", os.getpid(), f"process {self._pid} owns it")
            self._space.dma.end(reason, unmap=False)
        self._start()
        if used:
            self._parent, self._inherited = parent, inherited

    def at_fork(self) -> None:
        """Give a forked child a clean state of its own. It does nothing in any other process.

        The child can register a container of its own then. The parent's container, mappings and memory stay as they
        are; the child has none of them, and its copy of the parent's descriptor is closed.
        """
        with self._lock:
            inherited, self._inherited = self._inherited, None
            self._parent = 0
            if inherited is not None:
                inherited.close()

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
            NoIommuMode: The container has no IOMMU, and memory was allocated before: its IOVA is no physical address.
            MapFailed: The kernel refused to map it. Nothing stays mapped, nothing is registered.
            HugepagesNotConfigured: Hugepage mode was asked for, and the kernel has no hugepages.
            ForkedChild: The state belongs to the parent process.
        """
        check.c_int("fd", fd)
        with self._lock:
            chosen = self._begin()
            self._pages.check()
            current = self._space.container
            if current is not None and current.is_same(fd):
                self._count += 1
                return
            container = AttachedContainer(fd, self._kernel)
            try:
                if current is not None:
                    raise errors.WrongContainer("fd", fd, f"registered is {current.fd}")
                self._heap.drop_cache()
                self._space.attach(container, users=not chosen.thread_specific)
            except BaseException:
                container.close()
                raise
            self._count = 1

    def unregister_device(self, fd: int) -> None:
        """Undo one registration. The last one unmaps everything.

        User mappings end then: they are unmapped and have no translation any more (D10 of the C library left the
        device its access). Entries of `remap` end too. Allocations stay, with their IOVAs, for the next registration.

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
        with self._lock:
            self._begin()
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

    # ---- DMA ranges

    def dma_domain(self) -> Domain:
        """Return where ranges and streaming mappings of `usdm.dma_device` are, until the last unregistration.

        Raises:
            NotRegistered: No container is registered.
            NoIommuMode: The container has no IOMMU.
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            self._begin()
            container = self._space.container
            if container is None:
                raise errors.NotRegistered("dev", None)
            if container.no_iommu:
                raise errors.NoIommuMode("dev", container.fd)
            if self._space.dma is None:
                from usdm.dma_domain import Domain

                self._space.dma = Domain(container, self._space.iovas, self._lock)
            return self._space.dma

    # ---- the whole

    def prepare(self) -> None:
        """Read the settings and look whether the machine can do what they ask for; every first call does so.

        Raises:
            HugepagesNotConfigured: Hugepage mode was asked for, and the kernel has no hugepages.
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            self._begin()
            self._pages.check()

    def statistics(self) -> dict[str, int | str]:
        """Return what is in use, and how much: see `usdm.report`.

        Raises:
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            chosen = self._begin()
            found = report.statistics(self._space, self._heap, chosen)
        found["registrations"] = self._count
        found["failed"] = self._failed
        return found

    def maps(self) -> list[dict[str, int | str]]:
        """Return one dict a region, by ascending virtual address: see `usdm.report`.

        Raises:
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            self._begin()
            return report.maps(self._space)

    def close(self) -> None:
        """Unregister completely, end all mappings and entries, and give all memory of `allocate` back.

        The settings are read again at the next use.

        Raises:
            UnmapFailed: The kernel refused to unmap something; everything is given back all the same.
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            self._begin()
            self._count = 0
            try:
                self._space.detach()
            finally:
                self._heap.destroy()
                self._settings = None
