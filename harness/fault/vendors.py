"""The codes of IOMMUs other than VT-d: AMD-Vi's events and flags, SMMUv3's events, virtio-iommu's reasons.

AMD-Vi: "AMD I/O Virtualization Technology (IOMMU) Specification" (48882), event log. SMMUv3: Arm IHI 0070, event
records. virtio-iommu: the virtio specification 1.2, fault reporting.
"""

from __future__ import annotations

from typing import Final

AMD_EVENTS: Final[dict[str, int]] = {
    "ILLEGAL_DEV_TABLE_ENTRY": 0x1,
    "IO_PAGE_FAULT": 0x2,
    "DEV_TAB_HARDWARE_ERROR": 0x3,
    "PAGE_TAB_HARDWARE_ERROR": 0x4,
    "IOTLB_INV_TIMEOUT": 0x7,
    "INVALID_DEVICE_REQUEST": 0x8,
    "INVALID_PPR_REQUEST": 0x9,
    "RMP_PAGE_FAULT": 0xD,
    "RMP_HW_ERROR": 0xE,
}
"""AMD-Vi's events of a device, with their codes. Those of commands (0x5, 0x6) have no device."""

AMD_EVENT_WORDS: Final[dict[int, str]] = {
    0x1: "the device table entry is not valid, or has reserved bits set",
    0x2: "the page tables do not allow the access",
    0x3: "the device table could not be read",
    0x4: "a page table could not be read",
    0x7: "the device did not answer an invalidation of its own TLB",
    0x8: "a request that the device may not make",
    0x9: "a page request that the device may not make",
    0xD: "the reverse map table forbids the access",
    0xE: "the reverse map table could not be read",
}

AMD_FLAG_BITS: Final[dict[str, int]] = {
    "GN": 0x001,
    "NX": 0x002,
    "US": 0x004,
    "I": 0x008,
    "PR": 0x010,
    "RW": 0x020,
    "PE": 0x040,
    "RZ": 0x080,
    "TR": 0x100,
}
"""The flags of IO_PAGE_FAULT, as Linux prints them: bits 16 to 27 of the event's second word."""

AMD_FLAG_WORDS: Final[dict[str, str]] = {
    "GN": "address of a process (with PASID)",
    "NX": "tried to execute",
    "US": "user privilege",
    "I": "an interrupt",
    "PR": "the page is present",
    "RW": "a write",
    "PE": "the rights do not allow it",
    "RZ": "a reserved bit is set in a table",
    "TR": "a translation request",
}

SMMU_EVENTS: Final[dict[int, str]] = {
    0x01: "F_UUT",
    0x02: "C_BAD_STREAMID",
    0x03: "F_STE_FETCH",
    0x04: "C_BAD_STE",
    0x05: "F_BAD_ATS_TREQ",
    0x06: "F_STREAM_DISABLED",
    0x07: "F_TRANSL_FORBIDDEN",
    0x08: "C_BAD_SUBSTREAMID",
    0x09: "F_CD_FETCH",
    0x0A: "C_BAD_CD",
    0x0B: "F_WALK_EABT",
    0x10: "F_TRANSLATION",
    0x11: "F_ADDR_SIZE",
    0x12: "F_ACCESS",
    0x13: "F_PERMISSION",
    0x20: "F_TLB_CONFLICT",
    0x21: "F_CFG_CONFLICT",
    0x24: "E_PAGE_REQUEST",
    0x25: "F_VMS_FETCH",
}

SMMU_EVENT_WORDS: Final[dict[int, str]] = {
    0x01: "a transaction that the SMMU does not support",
    0x02: "the stream ID is beyond the stream table",
    0x03: "the stream table entry could not be read",
    0x04: "the stream table entry is not valid",
    0x05: "a translation request that is not allowed",
    0x06: "the stream is disabled for requests without a substream",
    0x07: "an address that the device claims to have translated, which it may not",
    0x08: "the substream ID (PASID) is beyond its table",
    0x09: "the context descriptor could not be read",
    0x0A: "the context descriptor is not valid",
    0x0B: "a page table could not be read",
    0x10: "no mapping for the address",
    0x11: "the address is beyond the configured width",
    0x12: "the access flag of the page is clear",
    0x13: "the page's rights do not allow the access",
    0x20: "two TLB entries for one address",
    0x21: "two cached configurations for one stream",
    0x24: "a page request",
    0x25: "the virtual machine structure could not be read",
}

VIRTIO_REASONS: Final[dict[str, int]] = {"unknown": 0, "domain": 1, "page": 2}
"""virtio-iommu's reasons by the word that Linux prints."""

VIRTIO_REASON_WORDS: Final[dict[int, str]] = {
    0: "the device does not say why",
    1: "the endpoint is attached to no domain",
    2: "no mapping that allows the access",
}
