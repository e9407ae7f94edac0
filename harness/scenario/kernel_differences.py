"""Where Linux's own dma_iova_* functions do otherwise than ``usdm``, by the ids that scenario files use.

docs/dma-iova.md has more, and what the document of the interface says of each.
"""

from __future__ import annotations

KERNEL_DIFFERENCES: dict[str, str] = {
    "K1": "to be listed",
}
"""Ids, with what a driver meets."""
