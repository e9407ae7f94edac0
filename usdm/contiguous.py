"""Hugepages that are contiguous in physical memory, for devices without an IOMMU.

The kernel gives hugepages in any order, often the highest first. So pages are taken until enough of them follow each
other, and those are moved to be one range of virtual memory.
"""

from __future__ import annotations

from usdm import errors
from usdm.limits import HUGEPAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.frames import Frames
    from usdm.pages import Pages


def arrange(pages: Pages, frames: Frames, address: int, size: int, node: int, alignment: int) -> int:
    """Return the address of memory that is contiguous, in place of that at `address`; after a failure there is none.

    Args:
        pages: Gives hugepages.
        frames: Tells where they are.
        address: `size` bytes of hugepages.
        size: Bytes.
        node: NUMA node of further pages, -1 for any.
        alignment: Of the physical address, in bytes.

    Raises:
        NotContiguous: All hugepages that the process can have do not suffice.
        NoMemory, PhysicalAddressHidden, PageNotPresent: The kernel refused.
    """
    unit, count = HUGEPAGE_SIZE, size // HUGEPAGE_SIZE
    held = [address + index * unit for index in range(count)]
    try:
        places = {frames.contiguous(page, unit, unit, unit): page for page in held}
        first = _run(places, count, alignment)
        while first is None:
            held.append(_another(pages, node, size, len(held)))
            places[frames.contiguous(held[-1], unit, unit, unit)] = held[-1]
            first = _run(places, count, alignment)
    except BaseException:
        for page in held:
            pages.free(page, unit)
        raise
    chosen = [places.pop(first + index * unit) for index in range(count)]
    for page in places.values():
        pages.free(page, unit)
    if chosen == [chosen[0] + index * unit for index in range(count)]:
        return chosen[0]
    return pages.gather(chosen)


def _another(pages: Pages, node: int, size: int, held: int) -> int:
    try:
        return pages.allocate(HUGEPAGE_SIZE, node, HUGEPAGE_SIZE)
    except (errors.HugepageQuota, errors.HugepagesExhausted) as error:
        raise errors.NotContiguous("size", size, f"none among {held} hugepages, and {error}") from error


def _run(places: dict[int, int], count: int, alignment: int) -> int | None:
    """Return the lowest physical address, a multiple of `alignment`, where `count` pages follow each other."""
    for first in sorted(places):
        if first % alignment == 0 and all(first + index * HUGEPAGE_SIZE in places for index in range(count)):
            return first
    return None
