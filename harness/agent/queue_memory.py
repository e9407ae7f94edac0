"""Memory that a device and its driver share: queues or rings, lists of pages or buffers, answers.

The device reaches it by DMA. In a container with an IOMMU it is mapped at an IOVA of its own: below the end of the
container's IOVAs, where USDM, which begins at the other end, hands out none, and by the device's requester ID, so that
no two devices meet. Without an IOMMU the device uses physical addresses, and the memory is locked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from harness.agent.outcome import StepError
from usdm.limits import DEFAULT_IOVA_RANGES, PAGE_SIZE
from usdm.vfio import full_bdf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Protocol

    from usdm.vfio_uapi import IommuInfo

    class DmaSpace(Protocol):
        """Where a device is: a container, or an IOAS."""

        @property
        def no_iommu(self) -> bool:
            """Addresses are physical."""

        def info(self) -> IommuInfo:
            """Tell the usable IOVAs."""

        def map_dma(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
            """Map memory of the process."""

        def unmap_dma(self, iova: int, size: int) -> int:
            """Unmap it."""


PAGE = PAGE_SIZE
PLACE = 64 * 1024
"""Bytes of IOVA that each device has for itself."""

_MAP_LOCKED = 0x2000
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1


class NoQueueMemory(StepError):
    """There is no place in the container for the queues, or the kernel does not tell their physical addresses."""


def requester(bdf: str) -> int:
    """Return the requester ID of a PCI address: bus, device and function as 16 bits."""
    bus, device, function = full_bdf(bdf)[5:].replace(".", ":").split(":")
    return int(bus, 16) << 8 | int(device, 16) << 3 | int(function)


def place_of(bdf: str, ranges: tuple[tuple[int, int], ...] | None) -> int:
    """Return the IOVA of a device's queues.

    Args:
        bdf: The device.
        ranges: The container's usable IOVAs, `(first, last)` each.

    Raises:
        NoQueueMemory: It would lie outside the last range.
    """
    first, last = (ranges or DEFAULT_IOVA_RANGES)[-1]
    place = (last + 1 & -PLACE) - PLACE * (requester(bdf) + 1)
    if place < first:
        raise NoQueueMemory(f"{first:#x} to {last:#x} has no place for the queues of {bdf}")
    return place


def physical_addresses(address: int, pages: int) -> list[int]:
    """Return the physical addresses of pages of this process; raises `NoQueueMemory`."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        entries = struct.unpack(f"={pages}Q", os.pread(fd, 8 * pages, address // PAGE * 8))
    finally:
        os.close(fd)
    if not all(entry & _PRESENT and entry & _FRAME for entry in entries):
        raise NoQueueMemory("the kernel does not tell the physical addresses of the queues' memory")
    return [(entry & _FRAME) * PAGE for entry in entries]


class QueueMemory:
    """Pages of zeros that the device can read and write.

    Attributes:
        addresses: The address of each page for the device.
    """

    def __init__(self, container: DmaSpace, bdf: str, pages: int) -> None:
        """Take the memory and let the device reach it.

        Raises:
            NoQueueMemory: The container has no place for it, or there are no physical addresses.
            usdm.errors.MapFailed: The kernel refused, for example because something else is mapped there.
        """
        self._container = container
        self._iova: int | None = None
        size = pages * PAGE
        locked = _MAP_LOCKED if container.no_iommu else 0
        # Shared, so that a fork does not make the pages copy-on-write and the child's the ones that the device knows.
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | locked)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        try:
            if container.no_iommu:
                self.addresses = physical_addresses(address, pages)
            else:
                iova = place_of(bdf, container.info().iova_ranges)
                container.map_dma(address, iova, size)
                self._iova = iova
                self.addresses = [iova + page * PAGE for page in range(pages)]
        except BaseException:
            self._memory.close()
            raise
        self._pages: list[memoryview] = []

    def page(self, number: int, items: Literal["B", "I", "Q"] = "B") -> memoryview:
        """Return a page's content as items of 1, 4 or 8 bytes; it can be used until `close`."""
        whole = memoryview(self._memory)
        page = whole[number * PAGE : (number + 1) * PAGE]
        view = page.cast(items)
        self._pages += (view, page, whole)
        return view

    def close(self) -> None:
        """Take the mapping away and give the memory back; the device must not use it any more, and still be open.

        Raises:
            usdm.errors.UnmapFailed: The kernel refused.
        """
        iova, self._iova = self._iova, None
        try:
            if iova is not None:
                self._container.unmap_dma(iova, len(self._memory))
        finally:
            for view in self._pages:
                view.release()
            self._memory.close()
