"""AMD-Vi's events, as Linux and as Xen print them.

Linux: ``AMD-Vi: Event logged [IO_PAGE_FAULT device=02:00.0 domain=0x0000 address=0x900000 flags=0x0020]``, with the
PCI domain before the device since 6.0. Of a device that has a driver, since 4.14, the name stands before the event
instead: ``vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=...``; before events of other kinds stands
the IOMMU's own name, which is no requester. Events without a device (of commands) are errors of the IOMMU, not faults.

Xen: ``AMD-Vi: IO_PAGE_FAULT: 0000:02:00.0 d0 addr 0000000000900000 flags 0x20 RW``; up to 4.13 ``AMD-Vi:
IO_PAGE_FAULT: domain = 0, device id = 0x200, fault address = 0x900000, flags = 0x20``.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from harness.fault.forms.common import Finds, Form, Found, Line, bdf, suppressed_pattern
from harness.fault.pci import requester_name
from harness.fault.vendors import AMD_EVENTS, AMD_FLAG_BITS
from harness.results import Access

_BDF: Final = r"(?:(?P<domain>[0-9a-f]{4,8}):)?(?P<bus>[0-9a-f]{2}):(?P<slot>[01][0-9a-f])\.(?P<function>[0-7])"
_EVENT: Final = re.compile(
    rf"(?:(?<![0-9a-f:]){_BDF}:\s{{1,4}})?(?:(?:AMD-Vi|AMD IOMMU):\s{{1,4}})?"
    r"(?:Event\s{1,4}logged\s{0,4}\[\s{0,4})?"
    rf"(?P<name>{'|'.join(AMD_EVENTS)})(?![0-9A-Z_])(?P<fields>[^\[\]\r\n\0]{{0,200}}\]?)"
    + "|"
    + suppressed_pattern("amd_iommu_report_page_fault", "amd_iommu_report_rmp_fault", "amd_iommu_report_rmp_hw_error"),
    re.IGNORECASE | re.ASCII,
)
# A number is whole only where something follows that is no part of it.
_DEVICE: Final = re.compile(rf"\bdevice=(?:{_BDF}(?=[\s,\]]))?", re.ASCII)
_XEN_DEVICE: Final = re.compile(
    rf":\s{{1,4}}(?:{_BDF} d|domain = \d{{1,5}}, device id = (?P<sid>0x[0-9a-f]{{1,4}}),)", re.ASCII
)
_NUMBER: Final = re.compile(
    r"\b(?P<key>address|addr|flags|pasid)(?: = |[ =])(?P<value>(?:0x)?[0-9a-f]{1,16})(?P<whole>[\s,\]])?", re.ASCII
)
_OF_DEVICE: Final = frozenset({"IO_PAGE_FAULT", "RMP_PAGE_FAULT", "RMP_HW_ERROR"})
"""Events before which Linux prints the device's own name."""
_IOVA: Final = frozenset({"IO_PAGE_FAULT", "ILLEGAL_DEV_TABLE_ENTRY", "INVALID_DEVICE_REQUEST", "INVALID_PPR_REQUEST"})
"""Events whose address is one that the device used; of others it is one of the IOMMU's tables or commands."""


class AmdForm(Form):
    """Reads AMD-Vi's events of devices."""

    triggers: ClassVar[tuple[bytes, ...]] = (
        b"_page_fault",
        b"dev_tab",
        b"page_tab_hardware",
        b"iotlb_inv_timeout",
        b"invalid_device_request",
        b"invalid_ppr_request",
        b"rmp_hw_error",
        b"callbacks",
    )

    def read(self, line: Line, finds: Finds) -> int:
        """Read a line; everything of an event stands on one."""
        end = 0
        for match in line.finds(_EVENT):
            end = match.end()
            if match["suppressed"] is not None:
                finds.suppressed += int(match["number"])
                continue
            requester = _requester(match)
            if requester is not None:
                finds.faults.append(_found(match, requester, line))
        return end


def _requester(match: re.Match[str]) -> str | None:
    fields = match["fields"]
    named = _DEVICE.search(fields)
    if named is None:
        named = _XEN_DEVICE.match(fields)
        if named is not None and named["sid"] is not None:
            return requester_name(int(named["sid"], 16))
    if named is None and match["name"].upper() in _OF_DEVICE and fields[:1] != ":":
        named = match
    if named is None or named["bus"] is None:
        return None
    return bdf(named["bus"], named["slot"], named["function"], named["domain"])


def _found(match: re.Match[str], requester: str, line: Line) -> Found:
    name = match["name"].upper()
    fields = match["fields"]
    whole_at_end = not line.cut(match.end())
    numbers: dict[str, int] = {}
    for number in _NUMBER.finditer(fields):
        if number["whole"] is not None or (whole_at_end and number.end() == len(fields) and fields[:1] == ":"):
            numbers[number["key"]] = int(number["value"], 16)
    flags = numbers.get("flags")
    return Found(
        vendor="amd",
        requester=requester,
        line=line.number,
        column=line.base + match.start(),
        time=line.time_at(match.start()),
        access=_access(name, flags),
        address=numbers.get("address", numbers.get("addr")) if name in _IOVA else None,
        reason=AMD_EVENTS[name],
        reason_text=name,
        # Where the request had none, Linux prints 0 all the same.
        pasid=numbers.get("pasid") if (flags or 0) & AMD_FLAG_BITS["GN"] else numbers.get("pasid") or None,
        flags=flags,
    )


def _access(name: str, flags: int | None) -> Access | None:
    """What the flags say: RW counts for a present page only, yet where it is set the request was a write."""
    if name not in _IOVA or flags is None:
        return None
    if flags & AMD_FLAG_BITS["I"]:
        return "interrupt"
    if flags & AMD_FLAG_BITS["TR"]:
        return None
    if flags & AMD_FLAG_BITS["RW"]:
        return "write"
    return "read" if flags & AMD_FLAG_BITS["PR"] else None
