"""Where Linux's own dma_iova_* functions do otherwise than ``usdm``, by the ids that scenario files use.

docs/dma-iova.md has more, and what the document of the interface says of each.
"""

from __future__ import annotations

KERNEL_DIFFERENCES: dict[str, str] = {
    "K1": "a link is mapped at once, and sync makes nothing: a DMA before it arrives",
    "K2": "sync looks at nothing that it is given: it succeeds over a hole",
    "K3": "a link may lie beyond its range, in IOVAs that are somebody else's",
    "K4": "a link may follow one that ends within a granule",
    "K5": "a range with links is freed: the memory stays reachable at IOVAs that others get",
    "K6": "destroy takes the length's word: links behind it stay reachable at IOVAs that others get",
    "K7": "a part of a link is unlinked: every granule that it touches is taken away",
    "K8": "the direction of unlink and destroy is not compared with the link's",
    "K9": "unlink over a hole takes away what lies before the hole, and warns in the log",
    "K10": "try_alloc overwrites a state that has a range, whose IOVAs are lost",
    "K11": "whether a state has a range is not looked at: the kernel would follow what stands in it",
    "K12": "the size and the direction of a streaming unmap are not compared with the mapping's",
    "K13": "a streaming mapping without a direction stops the kernel at a BUG()",
}
"""Ids, with what a driver meets."""
