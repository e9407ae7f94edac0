"""VT-d's faults as Xen prints them: what is its own.

The head is as Linux had it, with the PCI domain since 4.2 and, up to 4.12, the IOMMU's register behind the address:
``[VT-D]DMAR:[DMA Write] Request device [0000:01:00.0] fault addr 3f000, iommu reg = ffff82c000201000``. The reason
stands on a line of its own, and is hexadecimal: ``[fault reason 06h]`` up to 4.2, then ``DMAR: reason 06 -``.
"""

from __future__ import annotations

from typing import Final

MARK: Final = r"(?P<mark>\(XEN\)|\[VT-D\]|,\s{0,4}iommu\s{1,4}reg\s{0,4}=)"
"""What only Xen's lines have."""

REASON: Final = r"(?P<xen_reason>(?:DMAR|INTR-REMAP|UNKNOWN):\s{0,4}reason\s{1,4}(?P<xen_code>[0-9a-f]{1,4})\s{1,4}-)"
