"""Where Linux's own dma_iova_* functions do otherwise than ``usdm``, by the ids that scenario files use.

The table of docs/kernel-dma-iova.md has document, kernel and ``usdm`` of each side by side, under the same ids.
"""

from __future__ import annotations

KERNEL_DIFFERENCES: dict[str, str] = {
    "K1": "behind VT-d a link is mapped at once, and sync only flushes: a DMA before it arrives",
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

WITHOUT_SCENARIO: dict[str, str] = {
    "K3": "both refuse it, and which errno it is, is not compared",
    "K4": "both refuse it, and which errno it is, is not compared",
    "K7": "no step knows whether the kernel made one entry of 2 MiB out of a link",
    "K15": "a step has no unknown attributes",
    "K18": "each run reserves its IOVAs elsewhere, so they are not compared",
    "K19": "the guests have no bounce buffers, so the kernel refuses here as usdm does",
    "K20": "the guests have no bounce buffers, so nothing is ever bounced",
    "K22": "the kernel would stop at it, so the test module does not call it",
    "K23": "no step sees how many unmappings a call makes",
    "K24": "the test module takes a link's memory in one piece only",
}
"""Ids of what no scenario can show, with the reason."""
