"""A fault record as the line that Linux prints for it."""

from __future__ import annotations

import re

from harness.fault import reason_name
from harness.fault.pci import Requester
from harness.results import FaultRecord


def linux_line(fault: FaultRecord) -> str:
    """The line of Linux 6.x for a fault, without a time stamp, where no kernel printed it."""
    if fault.vendor == "amd":
        return f"AMD-Vi: Event logged [IO_PAGE_FAULT device={fault.requester} address={fault.address or 0:#x}]"
    if fault.vendor == "virtio":
        requester = Requester.parse(fault.requester)
        endpoint = "?" if requester is None else requester.rid
        return f"virtio_iommu virtio0: page fault from EP {endpoint} at {fault.address or 0:#x} []"
    kind = "INTR-REMAP" if fault.access == "interrupt" else f"DMA {(fault.access or '?').capitalize()}"
    pasid = "NO_PASID" if fault.pasid is None else f"PASID {fault.pasid:#x}"
    address = "?" if fault.address is None else f"{fault.address & -0x1000:#x}"
    place = f"fault index {fault.index or 0:#x}" if fault.access == "interrupt" else f"fault addr {address}"
    head = f"[{kind}]" if fault.access == "interrupt" else f"[{kind} {pasid}]"
    text = fault.reason_text or _capital(reason_name(fault.reason))
    return f"DMAR: {head} Request device [{fault.requester}] {place} [fault reason 0x{fault.reason or 0:02x}] {text}"


def line_pattern(fault: FaultRecord) -> str:
    """A regular expression for the kernel's line of a fault, as any kernel from 5.x on prints it."""
    access = (fault.access or "").capitalize()
    requester = re.escape(fault.requester)
    address = f"{(fault.address or 0) & -0x1000:x}"
    return (
        rf"\[DMA {access}( NO_PASID)?\] Request device \[(0000:)?{requester}\] fault addr (0x)?{address} "
        rf"\[fault reason (0x)?{fault.reason or 0:02x}\]"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
