"""What is known to be wrong in Intel's C library, by the ids that scenario files use.

docs/libusdm-findings.md has more, and the command that shows each.
"""

from __future__ import annotations

DEFECTS: dict[str, str] = {
    "D1": "after an unmap only the first page has no translation any more",
    "D2": "unmapping what is not mapped succeeds, and unmaps the memory of others",
    "D3": "an IOVA that is mapped already is handed out: the device reaches other memory",
    "D4": "mapping the same memory again makes the first mapping impossible to unmap",
    "D5": "unmapping one of two overlapping mappings destroys the translations of the other",
    "D6": "unmapping a part removes the whole mapping, or fails and still frees the IOVA",
    "D7": "unmapping at an inner page unmaps from the start, or nothing",
    "D8": "memory of qaeMemAllocNUMA can be unmapped, with the memory of others beside it",
    "D9": "translations of freed memory stay",
    "D10": "the device keeps its access to mapped memory after the last unregistration",
    "D11": "the reserved window is forgotten when nothing was allocated before the registration",
    "D12": "IOVAs beyond the IOMMU's width are handed out",
    "D13": "memory from before the registration has made-up IOVAs in no-IOMMU mode: the device reaches other memory",
    "D14": "no-IOMMU mode allowed on the machine counts for devices that have an IOMMU: nothing can be mapped",
    "V1": "the descriptor of a VFIO device is registered as a container",
    "V2": "in no-IOMMU mode every number is registered as a container, and then the real one is refused",
    "F1": "a forked child maps into its parent's container, and the parent's device reaches the child's memory",
    "F2": "qaeAtFork does nothing; a child's mapping outlives the child",
    "A1": "sizes near 2 MiB cannot be allocated with an alignment above 1 KiB",
    "A2": "large allocations and mapped memory have no translation from IOVA to virtual address",
    "A3": "a pointer into a large allocation frees it; a refused free of a small one still sets the pointer to NULL",
    "H1": "a wrong hugepage configuration fails the first call only; large allocations fail with hugepages",
    "N1": "the NUMA node is ignored",
    "L1": "a refused map or unmap says nothing of the reason",
}
"""Ids as in the list of the project's reference, with what a user meets."""

OTHER: dict[str, str] = {
    "policy": "neither is wrong: the documentation leaves it open, and the two have chosen differently",
    "absent": "the C library does not offer it",
}
"""Differences that are no defects."""
