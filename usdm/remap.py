"""Physical memory of the process at IOVAs of choice, as `icp_sal_iommu.h` has it; the names of C are beside it."""

from __future__ import annotations

import os

from usdm import check, errors
from usdm.limits import MAX_U64, PAGE_SIZE
from usdm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.container import AttachedContainer

IOMMUS = "/sys/class/iommu"

DOMAIN0 = "domain0"
"""A container with an IOMMU is registered: entries go into its tables."""

NO_IOMMU = "no_iommu"
"""The registered container has no IOMMU, or nothing is registered and the machine has none: there are no tables.

A virtual machine without an IOMMU of its own is this too, and is not told apart from real hardware: both do nothing. A
virtual machine whose IOMMU is emulated is `DOMAIN0`, as real hardware, because its device needs entries as well."""

UNREGISTERED = "unregistered"
"""The machine has an IOMMU, and nothing is registered: nobody knows which domain the device is in."""


class Remapping(State):
    """Entries that let devices of the registered container reach physical memory of the process.

    An entry ends with `unremap`, with the last unregistration, and with `close`, as mappings of the program's memory
    do; its pages stay pinned until then, even when the program gives them back. A forked child has no entries.
    """

    def context(self) -> str:
        """Return what `remap` and `unremap` do now: `DOMAIN0`, `NO_IOMMU` or `UNREGISTERED`.

        Raises:
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            self._begin()
            return self._context()[0]

    def _context(self) -> tuple[str, str]:
        """Return the context, and which IOMMUs the machine has where that decides."""
        container = self._space.container
        if container is not None:
            return (NO_IOMMU if container.no_iommu else DOMAIN0), ""
        try:
            names = ", ".join(sorted(self._kernel.names_in(IOMMUS)))
        except OSError as error:
            # Nobody knows, so entries might be needed.
            return UNREGISTERED, f"perhaps: {IOMMUS}: {os.strerror(error.errno or 0)}"
        return (UNREGISTERED if names else NO_IOMMU), names

    def remap(self, phaddr: int, iova: int, size: int) -> None:
        """Have devices reach physical memory of this process at an IOVA. In the context `NO_IOMMU` nothing happens.

        A refused call changes nothing.

        Args:
            phaddr: Physical address, a multiple of 4 KiB.
            iova: IOVA, a multiple of 4 KiB; the physical address itself for a 1:1 entry. It must not lie in units of
                2 MiB that USDM has given out.
            size: Bytes, a multiple of 4 KiB.

        Raises:
            BadArgument: An argument is no 64-bit integer.
            NotRegistered: The machine has an IOMMU, and no container is registered.
            BadSize: `size` is 0.
            NotAligned: An argument is not a multiple of 4 KiB.
            RangeOverflow: A range ends beyond 64 bits.
            IovaReserved: The IOVAs meet a reserved window, or lie beyond the IOMMU's width.
            IovaTaken: Another entry is there, or memory that USDM has given an IOVA.
            ForeignMemory: The physical range is not all memory of this process that it may write to.
            PhysicalAddressHidden: The process cannot see its physical addresses.
            PageMoved: The kernel moved a page before it was pinned.
            MapFailed: VFIO refused.
            ForkedChild: The state belongs to the parent process.
        """
        for name, value in (("phaddr", phaddr), ("iova", iova), ("size", size)):
            check.integer(name, value)
        with self._lock:
            container = self._domain("phaddr", phaddr)
            if container is not None:
                _pages(size, phaddr=phaddr, iova=iova)
                self._space.entries.add(container, phaddr, iova, size)

    def unremap(self, iova: int, size: int) -> None:
        """End one entry, or several that follow each other. In the context `NO_IOMMU` nothing happens.

        Args:
            iova: Where the first entry begins.
            size: Bytes of all of them together.

        Raises:
            BadArgument, NotRegistered, BadSize, NotAligned, RangeOverflow, ForkedChild: As `remap`.
            NotRemapped: No entry is there, or not in the whole range.
            PartOfEntry: The range cuts an entry.
            UnmapFailed: VFIO refused, and the entries are as before; or (ENOENT) somebody had unmapped them beside
                USDM, and they are forgotten.
        """
        for name, value in (("iova", iova), ("size", size)):
            check.integer(name, value)
        with self._lock:
            container = self._domain("iova", iova)
            if container is not None:
                _pages(size, iova=iova)
                self._space.entries.remove(container, iova, size)

    def remappings(self) -> list[dict[str, int]]:
        """Return one dict an entry, by ascending IOVA: `iova`, `phaddr`, `size`, `pieces` (mappings that it takes).

        Raises:
            ForkedChild: The state belongs to the parent process.
        """
        with self._lock:
            self._begin()
            return [
                {"iova": entry.iova, "phaddr": entry.phaddr, "size": entry.size, "pieces": len(entry.pieces)}
                for entry in self._space.entries.all()
            ]

    def _domain(self, argument: str, value: int) -> AttachedContainer | None:
        """Return the container that has the tables, or None where there are none."""
        self._begin()
        context, names = self._context()
        if context == UNREGISTERED:
            raise errors.NotRegistered(argument, value, f"the machine has an IOMMU: {names}")
        return self._space.container if context == DOMAIN0 else None


def _pages(size: int, **starts: int) -> None:
    """Check the size and the starts of ranges."""
    if size == 0:
        raise errors.BadSize("size", size)
    for name, value in (*starts.items(), ("size", size)):
        if value % PAGE_SIZE:
            raise errors.NotAligned(name, value, f"the page size is {PAGE_SIZE:#x}")
    for name, value in starts.items():
        if value + size - 1 > MAX_U64:
            raise errors.RangeOverflow(name, value, f"size {size:#x}")
