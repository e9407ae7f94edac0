"""Where Linux's own dma_iova_* functions do otherwise than ``usdm``, by the ids that scenario files use.

docs/dma-iova.md has more. The numbers are those of docs/kernel-dma-iova.md, which has what no scenario can show, too.
"""

from __future__ import annotations

KERNEL_DIFFERENCES: dict[str, str] = {
    "K1": "a link is mapped at once, and sync makes nothing: a DMA before it arrives",
    "K2": "a link may follow one that ends within a granule",
    "K5": "a link may lie beyond its range, in IOVAs that are somebody else's",
    "K6": "a part of a link is unlinked: every granule that it touches is taken away",
    "K8": "unlink over a hole takes away what lies before the hole, and warns in the log",
    "K9": "a range with links is freed: the memory stays reachable at IOVAs that others get",
    "K10": "destroy takes the length's word: links behind it stay reachable at IOVAs that others get",
    "K11": "a range with links is destroyed as an empty one: the memory stays reachable",
    "K12": "destroy with a length that was never linked ends the range, and warns in the log",
    "K13": "the direction of unlink and destroy is not compared with the link's",
    "K14": "sync looks at nothing that it is given: it succeeds over a hole",
    "K16": "try_alloc overwrites a state that has a range, whose IOVAs are lost",
    "K17": "a state stays as it was when its range ends: dma_use_iova says that it has one",
    "K21": "IOVAs are given below those that usdm begins with: a mask of 20 bits is enough",
    "K25": "the size and the direction of a streaming unmap are not compared with the mapping's",
}
"""Ids, with what a driver meets."""
