"""Where everything is in the memory of a machine without a guest system.

What is below `TABLES` is the scenario's. All places are fixed, so that a fault at one of them can be written down.
"""

from __future__ import annotations

from harness.machine.vtd.bits import PAGE

TABLES = 0x0200_0000
"""The tables of the IOMMU, from here on, one page after the other."""

NVME = 0x0300_0000
"""The queues of the n-th device of the machine, an nvme or VF: 4 pages each. The submission queue is the first."""

NVME_PAGES = 4
QUEUE = 0x0310_0000
"""The IOMMU's invalidation queue, and in the next page what its wait descriptors write."""

END = 0x0400_0000


class Pages:
    """Gives pages of memory one after the other.

    Args:
        first: address of the first.
        end: address behind the last.
    """

    def __init__(self, first: int = TABLES, end: int = NVME) -> None:
        self._next = first
        self._end = end

    def take(self, count: int = 1) -> int:
        """The address of as many pages in one piece; raises MemoryError when there is no more room."""
        address = self._next
        self._next += count * PAGE
        if self._next > self._end:
            raise MemoryError("the tables do not fit in the memory that is for them")
        return address
