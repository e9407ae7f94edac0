"""virtio-iommu's faults as Linux prints them: ``virtio_iommu virtio0: page fault from EP 256 at 0x900000 [R]``.

EP is the endpoint ID, in decimal: on PCI the requester ID. The upper half of a larger one is the platform's own (most
use it for the PCI domain) and is left out. The flags may be empty: not every device says what was tried.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from harness.fault.forms.common import Finds, Form, Found, Line, suppressed_pattern
from harness.fault.pci import requester_name
from harness.fault.vendors import VIRTIO_REASONS
from harness.results import Access

_FAULT: Final = re.compile(
    r"\b(?P<word>domain|page|unknown) fault from EP (?P<endpoint>\d{1,10})(?!\d)"
    r"(?: at (?P<address>0x[0-9a-f]{1,16}|0)(?= )(?: \[(?P<flags>[RWX]{0,3})\])?)?"
    rf"|{suppressed_pattern('viommu_fault_handler')}",
    re.ASCII,
)
# A request that may read and write, or of which nothing is said, is neither.
_ACCESS: Final[dict[str | None, Access]] = {"R": "read", "W": "write", "X": "read", "RX": "read"}


class VirtioForm(Form):
    """Reads virtio-iommu's fault lines."""

    triggers: ClassVar[tuple[bytes, ...]] = (b"fault from ep", b"callbacks")

    def read(self, line: Line, finds: Finds) -> int:
        """Read a line; everything of a fault stands on one."""
        end = 0
        for match in line.finds(_FAULT):
            end = match.end()
            if match["suppressed"] is not None:
                finds.suppressed += int(match["number"])
            elif not (match["address"] is None and line.cut(end)):
                finds.faults.append(_found(match, line))
        return end


def _found(match: re.Match[str], line: Line) -> Found:
    return Found(
        vendor="virtio",
        requester=requester_name(int(match["endpoint"]) & 0xFFFF),
        line=line.number,
        column=line.base + match.start(),
        time=line.time_at(match.start()),
        access=_ACCESS.get(match["flags"]),
        address=None if match["address"] is None else int(match["address"], 16),
        reason=VIRTIO_REASONS[match["word"]],
        reason_text=f"{match['word']} fault",
    )
