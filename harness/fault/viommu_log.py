"""Fault records of virtio-iommu and AMD-Vi out of the kernel log of a scenario's guest.

``virtio_iommu virtio0: page fault from EP 256 at 0x900000 [R]``: the endpoint is the requester ID in decimal, and the
letters are there for a mapping that does not allow the access. ``vfio-pci 0000:00:05.0: AMD-Vi: Event logged
[IO_PAGE_FAULT domain=0x0000 address=0x0 flags=0x0000]``, or with ``device=0000:00:05.0`` inside where the kernel knows
no device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from harness.fault.kernel_log import KernelFaults
from harness.fault.requester import requester_name
from harness.fault.viommu_trace import AMD_PAGE_FAULT
from harness.results import FaultRecord

_REASONS: Final = {"unknown": 0, "domain": 1, "page": 2}
_VIRTIO: Final = re.compile(
    r"(?:\[\s{0,12}(?P<time>\d{1,10}\.\d{1,9})\] )?virtio_iommu \S{1,40}: "
    r"(?P<reason>unknown|domain|page) fault from EP (?P<endpoint>\d{1,5})"
    r"(?: at 0x(?P<address>[0-9a-f]{1,16}) \[(?P<access>[RWX]{0,3})\])?$"
)
_AMD: Final = re.compile(
    r"(?:\[\s{0,12}(?P<time>\d{1,10}\.\d{1,9})\] )?"
    r"(?:\S{1,40} (?P<name>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]): )?AMD-Vi: Event logged \[IO_PAGE_FAULT "
    r"(?:device=(?P<device>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) )?domain=0x[0-9a-f]{1,8} "
    r"address=0x(?P<address>[0-9a-f]{1,16}) flags=0x(?P<flags>[0-9a-f]{1,4})\]$"
)
# Flags of an AMD-Vi event: the page was present (PR), the access was a write (RW).
_PRESENT: Final = 0x10
_WRITE: Final = 0x20


def with_viommus(faults: KernelFaults, log: Iterable[str]) -> KernelFaults:
    """What a kernel log says of VT-d's faults, and with it those of virtio-iommu and AMD-Vi.

    Args:
        faults: what :func:`parse_kernel_log` found in it.
        log: its lines.
    """
    if any(record.vendor in ("virtio", "amd") for record in faults.records):
        return faults
    found = []
    for number, text in enumerate(log, 1):
        if match := _VIRTIO.search(text):
            found.append(_virtio(match, number))
        elif match := _AMD.search(text):
            found.append(_amd(match, number))
    return faults.model_copy(update={"records": (*faults.records, *found)})


def _virtio(match: re.Match[str], number: int) -> FaultRecord:
    accesses: dict[str | None, Literal["read", "write"]] = {"R": "read", "W": "write"}
    return FaultRecord(
        witness="kernel",
        vendor="virtio",
        requester=requester_name(int(match["endpoint"])),
        access=accesses.get(match["access"]),
        address=None if match["address"] is None else int(match["address"], 16),
        reason=_REASONS[match["reason"]],
        reason_text=match["reason"],
        line=number,
        time=None if match["time"] is None else float(match["time"]),
    )


def _amd(match: re.Match[str], number: int) -> FaultRecord:
    flags = int(match["flags"], 16)
    return FaultRecord(
        witness="kernel",
        vendor="amd",
        requester=match["device"] or match["name"] or "",
        access="write" if flags & _WRITE else "read" if flags & _PRESENT else None,
        address=int(match["address"], 16),
        reason=AMD_PAGE_FAULT,
        reason_text="IO_PAGE_FAULT",
        line=number,
        time=None if match["time"] is None else float(match["time"]),
    )
