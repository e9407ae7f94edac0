"""NUMA nodes: which have memory, and where a page is."""

from __future__ import annotations

import errno

from usdm.kernel import Kernel

HAS_MEMORY = "/sys/devices/system/node/has_memory"
ANY_NODE = -1


def node_of(address: int, kernel: Kernel | None = None) -> int:
    """Return the NUMA node of the page at an address of this process, which is read to be there; 0 without NUMA.

    Raises:
        OSError: No memory is at the address.
    """
    try:
        return (kernel or Kernel()).node_of(address)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return 0
        raise


def memory_nodes(kernel: Kernel) -> frozenset[int]:
    """Return the NUMA nodes that have memory; a kernel without NUMA has node 0 only."""
    try:
        text = kernel.read_text(HAS_MEMORY)
    except OSError:
        return frozenset((0,))
    nodes: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        nodes.update(range(int(first), int(last or first) + 1))
    return frozenset(nodes or (0,))
