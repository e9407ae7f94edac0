"""Memory that devices are to reach: pages of 4 KiB or 2 MiB, from a NUMA node where one is asked for."""

from __future__ import annotations

import os

from usdm import errors, numa
from usdm.kernel import MADV_DONTFORK, MADV_POPULATE_WRITE, MAP_HUGE_2MB, MAP_HUGETLB
from usdm.limits import HUGEPAGE_SIZE, PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.kernel import Kernel

HUGEPAGES_SYSFS = "/sys/kernel/mm/hugepages/hugepages-2048kB"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)


class Pages:
    """Takes pages from the kernel and gives them back.

    The memory is private, zeroed, and not inherited by a forked child: a child that wrote to it would leave the parent
    and the device on different pages. Hugepages are anonymous, so there is no file, no descriptor and no umask (H1 of
    the C library).

    Attributes:
        unit: Size of a page in bytes.
        quota: How many hugepages the process may have; 0 in 4 KiB mode.
        held: How many pages of `unit` bytes it has.
    """

    def __init__(self, kernel: Kernel, quota: int = 0) -> None:
        self.held = 0
        self._kernel = kernel
        self.configure(quota)
        self._nodes: frozenset[int] = frozenset()
        self._left: list[tuple[int, int]] = []

    def configure(self, quota: int) -> None:
        """Use `quota` hugepages, or pages of 4 KiB when it is 0. Nothing is held."""
        self.unit = HUGEPAGE_SIZE if quota else PAGE_SIZE
        self.quota = quota
        self._configured = not quota

    @property
    def left(self) -> int:
        """Bytes that the kernel refused to take back; each further call tries again."""
        return sum(size for _, size in self._left)

    def check(self) -> None:
        """Look whether the kernel has hugepages, until it has; 4 KiB mode needs none.

        Raises:
            HugepagesNotConfigured: It has none.
        """
        if not self._configured:
            total, _ = self._pool()
            if total <= 0:
                raise errors.HugepagesNotConfigured("QAT_MAX_2M_HPG_PER_PROCESS", self.quota, "nr_hugepages is 0")
            self._configured = True

    def check_node(self, node: int) -> None:
        """Look whether a NUMA node has memory; -1 is any.

        Raises:
            NoSuchNode: It has none.
        """
        if node != numa.ANY_NODE and node not in self._nodes:
            self._nodes = numa.memory_nodes(self._kernel)
            if node not in self._nodes:
                told = ", ".join(map(str, sorted(self._nodes)))
                raise errors.NoSuchNode("node", node, f"nodes with memory: {told}")

    def allocate(self, size: int, node: int, boundary: int = PAGE_SIZE) -> int:
        """Return the address of `size` bytes, a multiple of `unit`.

        Args:
            size: Bytes.
            node: NUMA node that all pages come from; -1 for any. The pages are asked for with MPOL_PREFERRED and
                looked at: MPOL_BIND would end in the OOM killer on a full node.
            boundary: The address is a multiple of it, in bytes: a power of two up to 2 MiB.

        Raises:
            NoMemory: The kernel gave none, or the node has not enough.
            HugepageQuota: The process has as many hugepages as it may.
            HugepagesExhausted: The kernel's pool, or the node's, is empty.
            HugepagesNotConfigured: The kernel has no hugepages.
        """
        self.retry()
        count = size // self.unit
        if self.quota and self.held + count > self.quota:
            detail = f"{count} needed, {self.held} of {self.quota} held"
            raise errors.HugepageQuota("size", size, detail)
        address = self._aligned(size, boundary)
        self.held += count
        try:
            self._prepare(address, size, node)
        except BaseException:
            self.free(address, size)
            raise
        return address

    def free(self, address: int, size: int) -> None:
        """Give memory of `allocate` back. What the kernel refuses to take is tried again later."""
        self.retry()
        self._unmap(address, size, self._left)
        self.held -= size // self.unit

    def gather(self, pages: list[int]) -> int:
        """Move single pages of `unit` bytes, in this order, to a place where they are one range; return its address.

        After a failure they are all given back.

        Args:
            pages: Their addresses.

        Raises:
            NoMemory: The kernel refused.
        """
        size, unit = len(pages) * self.unit, self.unit
        moved = 0
        place = 0
        try:
            # Ordinary memory that is never touched keeps the place free; each page that moves in takes its part away.
            whole = self._kernel.mmap(size + unit)
            place = -(-whole // unit) * unit
            for start, end in ((whole, place), (place + size, whole + size + unit)):
                if start < end:
                    self._unmap(start, end - start, self._left)
            for page in pages:
                self._kernel.move_pages_of(page, unit, place + moved * unit)
                moved += 1
        except OSError as error:
            for page in pages[moved:]:
                self.free(page, unit)
            if place:
                self._unmap(place, size, self._left)
                self.held -= moved
            raise errors.NoMemory("size", size, f"mremap failed: {_reason(error)}") from error
        return place

    def _unmap(self, address: int, size: int, left: list[tuple[int, int]]) -> None:
        try:
            self._kernel.munmap(address, size)
        except OSError:
            left.append((address, size))

    def retry(self) -> None:
        """Give back what the kernel has refused to take so far."""
        if self._left:
            pieces, self._left = self._left, []
            for address, size in pieces:
                self._unmap(address, size, self._left)

    def _aligned(self, size: int, boundary: int) -> int:
        address = self._map(size)
        if address % boundary == 0:
            return address
        self._unmap(address, size, self._left)
        whole = self._map(size + boundary)
        address = -(-whole // boundary) * boundary
        for start, end in ((whole, address), (address + size, whole + size + boundary)):
            if start < end:
                self._unmap(start, end - start, self._left)
        return address

    def _map(self, size: int) -> int:
        try:
            return self._kernel.mmap(size, MAP_HUGETLB | MAP_HUGE_2MB if self.quota else 0)
        except OSError as error:
            raise self._none("size", size, _reason(error)) from error

    def _prepare(self, address: int, size: int, node: int) -> None:
        try:
            self._kernel.madvise(address, size, MADV_DONTFORK)
        except OSError as error:
            raise errors.NoMemory("size", size, f"MADV_DONTFORK failed: {_reason(error)}") from error
        chosen = node != numa.ANY_NODE and len(self._nodes) > 1
        try:
            if chosen:
                self._kernel.prefer_node(address, size, node)
        except OSError as error:
            raise errors.NoMemory("node", node, f"mbind failed: {_reason(error)}") from error
        if not (chosen or self.quota):
            return
        # An empty pool, or a full machine, is an error here and no SIGBUS at the first access.
        try:
            self._kernel.madvise(address, size, MADV_POPULATE_WRITE)
            nodes = self._kernel.nodes_of(address, size, self.unit) if chosen else []
        except OSError as error:
            raise self._none("size", size, _reason(error)) from error
        elsewhere = sum(found != node for found in nodes)
        if elsewhere:
            raise self._none("node", node, f"{elsewhere} of {len(nodes)} pages came from other nodes")

    def _none(self, argument: str, value: int, detail: str) -> errors.UsdmError:
        if not self.quota:
            return errors.NoMemory(argument, value, detail)
        total, free = self._pool()
        return errors.HugepagesExhausted(
            argument, value, f"{detail}; {free} of {total} free, this process has {self.held}"
        )

    def _pool(self) -> tuple[int, int]:
        """Return how many hugepages the kernel has, and how many of them are free."""
        numbers = []
        try:
            for name in ("nr_hugepages", "free_hugepages"):
                numbers.append(int(self._kernel.read_text(f"{HUGEPAGES_SYSFS}/{name}"), 0))
        except (OSError, ValueError) as error:
            detail = f"{HUGEPAGES_SYSFS}: {error}"
            raise errors.HugepagesNotConfigured("QAT_MAX_2M_HPG_PER_PROCESS", self.quota, detail) from error
        return numbers[0], numbers[1]
