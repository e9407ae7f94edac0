"""The fault reason codes of VT-d and their names, and a fault in one line of words.

The codes are those of the VT-d specification: 0x01-0x0f for requests under legacy tables, 0x20-0x29 for interrupt
remapping, 0x30-0x92 for scalable mode. The words are those that engineers meet in Linux's log, without its ``SM:``.
"""

from __future__ import annotations

from typing import Final

from harness.fault.vendors import AMD_EVENT_WORDS, SMMU_EVENT_WORDS, VIRTIO_REASON_WORDS
from harness.results import Access, FaultRecord, Vendor

REASONS: Final[dict[int, str]] = {
    0x00: "software",
    # Legacy mode: root and context tables, then the page tables.
    0x01: "present bit in root entry is clear",
    0x02: "present bit in context entry is clear",
    0x03: "invalid context entry",
    0x04: "access beyond MGAW",
    0x05: "PTE write access is not set",
    0x06: "PTE read access is not set",
    0x07: "next page table pointer is invalid",
    0x08: "root table address is invalid",
    0x09: "context table pointer is invalid",
    0x0A: "non-zero reserved fields in root entry",
    0x0B: "non-zero reserved fields in context entry",
    0x0C: "non-zero reserved fields in PTE",
    0x0D: "context entry blocks translation and translated requests",
    0x0E: "PTE maps into the interrupt address range",
    0x0F: "translation request is blocked by the context entry",
    # Interrupt remapping.
    0x20: "reserved fields set in remappable interrupt request",
    0x21: "interrupt index exceeds the interrupt-remapping table size",
    0x22: "present bit in IRTE is clear",
    0x23: "interrupt-remapping table cannot be accessed",
    0x24: "non-zero reserved fields in IRTE",
    0x25: "blocked compatibility format interrupt request",
    0x26: "source-id verification of interrupt request failed",
    0x27: "posted-interrupt descriptor cannot be accessed",
    0x28: "non-zero reserved fields in posted-interrupt descriptor",
    0x29: "interrupt request of a kind that is not allowed",
    # Scalable mode: root table.
    0x30: "invalid root table address",
    0x31: "translation table mode does not allow requests with PASID",
    0x32: "translation table mode does not allow page group requests",
    0x33: "translation table mode does not allow the request",
    0x38: "root entry cannot be accessed",
    0x39: "present bit in root entry is clear",
    0x3A: "non-zero reserved fields in root entry",
    # Scalable mode: context table.
    0x40: "context entry cannot be accessed",
    0x41: "present bit in context entry is clear",
    0x42: "non-zero reserved fields in context entry",
    0x43: "invalid context entry",
    0x44: "device TLB enable in context entry is clear",
    0x45: "PASID enable in context entry is clear",
    0x46: "PASID is larger than the context entry allows",
    0x47: "page request enable in context entry is clear",
    0x48: "RID_PASID in context entry is invalid",
    # Scalable mode: PASID directory and table.
    0x50: "PASID directory entry cannot be accessed",
    0x51: "present bit in PASID directory entry is clear",
    0x52: "non-zero reserved fields in PASID directory entry",
    0x58: "PASID table entry cannot be accessed",
    0x59: "present bit in PASID table entry is clear",
    0x5A: "non-zero reserved fields in PASID table entry",
    0x5B: "invalid PASID table entry",
    0x5C: "execute requests enable in PASID table entry is clear",
    0x5D: "supervisor requests enable in PASID table entry is clear",
    # Scalable mode: first-level (0x70-0x77) and second-level (0x78-0x7d) page tables.
    0x70: "first-level paging entry cannot be accessed",
    0x71: "present bit in first-level paging entry is clear",
    0x72: "non-zero reserved fields in first-level paging entry",
    0x73: "first-level page table cannot be accessed through its pointer",
    0x74: "first-level entry address beyond MGAW in nested translation",
    0x75: "no read permission for first-level page table in nested translation",
    0x76: "no read permission for first-level paging entry in nested translation",
    0x77: "no write permission for first-level paging entry in nested translation",
    0x78: "second-level paging entry cannot be accessed",
    0x79: "no read or write permission in second-level paging entry",
    0x7A: "non-zero reserved fields in second-level paging entry",
    0x7B: "invalid second-level page table pointer",
    0x7C: "accessed/dirty update needed in second-level entry without snooping",
    0x7D: "accessed/dirty update in second-level entry failed",
    # Scalable mode: the address and the permissions of the request.
    0x80: "address is not canonical for first-level translation",
    0x81: "user privilege denied by first-level translation",
    0x82: "no execute permission for request with PASID",
    0x83: "address beyond what the hardware supports",
    0x84: "second-level entry address beyond the maximum",
    0x85: "no write permission for write or atomic request",
    0x86: "no read permission for read or atomic request",
    0x87: "address in the interrupt address range",
    0x88: "request not allowed in scalable mode (SGN.9)",
    0x89: "request not allowed in scalable mode (SGN.10)",
    0x90: "accessed/dirty update needed in first-level entry without snooping",
    0x91: "accessed/dirty update in first-level entry failed",
    0x92: "extended-accessed update in first-level entry failed",
}

# What the reason alone says of the access; used where a log line lost the rest.
_READ: Final = frozenset({0x06, 0x86})
_WRITE: Final = frozenset({0x05, 0x85})

_OTHERS: Final[dict[Vendor, dict[int, str]]] = {
    "amd": AMD_EVENT_WORDS,
    "arm": SMMU_EVENT_WORDS,
    "virtio": VIRTIO_REASON_WORDS,
}


def reason_name(code: int | None, vendor: Vendor = "intel") -> str:
    """The name of a fault reason; a code that the vendor's IOMMU does not define is said to be so."""
    if code is None:
        return "reason not said"
    words = _OTHERS.get(vendor)
    if words is not None:
        return words.get(code, f"reason not defined by {vendor}")
    return REASONS.get(code, "reason not defined by VT-d")


def is_interrupt_reason(code: int) -> bool:
    """Whether the code belongs to interrupt remapping."""
    return 0x20 <= code < 0x30


def reason_access(code: int) -> Access | None:
    """The kind of access that a reason implies, or None where it says nothing about it."""
    if is_interrupt_reason(code):
        return "interrupt"
    if code in _READ:
        return "read"
    return "write" if code in _WRITE else None


def describe(fault: FaultRecord, device: str = "", step: str = "") -> str:
    """A fault in one line: ``02:00.0 read 0x900000, reason 0x06 (PTE read access is not set)``.

    Args:
        fault: the fault.
        device: the name of the requester, where it has one.
        step: the id of the step that it happened in, where it has one.
    """
    words = [f"{device} ({fault.requester})" if device else fault.requester, fault.access or "access not said"]
    if fault.access == "interrupt":
        words.append("index not said" if fault.index is None else f"index {fault.index:#x}")
    else:
        words.append("address not said" if fault.address is None else f"{fault.address:#x}")
    if fault.pasid is not None:
        words.append(f"PASID {fault.pasid:#x}")
    text = " ".join(words)
    text += "" if fault.reason is None else f", reason 0x{fault.reason:02x}"
    text += f" ({reason_name(fault.reason, fault.vendor)})"
    if fault.count > 1:
        text += f", {fault.count} times"
    if fault.step is not None:
        text += f", step {fault.step}" + f" ({step})" * bool(step)
    return text
