"""Refused accesses in the traces of QEMU's virtio-iommu and amd-iommu, each of which takes two events to tell of one.

virtio-iommu says with ``virtio_iommu_report_fault`` who was refused, where and why; whether it was a read is in the
``virtio_iommu_translate`` before it, except for a mapping that does not allow it. amd-iommu says with
``amdvi_page_fault`` where, and with the ``amdvi_translation_result`` behind it who; nothing says whether it was a read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal

from harness.fault.pci import requester_name
from harness.results import FaultRecord

AMD_PAGE_FAULT: Final = 2
"""Code of the event that AMD's IOMMU logs for a refused access: IO_PAGE_FAULT."""

# QEMU's formats; "endpoint" and "rid" are requester IDs. The last number ends the line: one that was cut off in the
# middle can therefore be wrong, but evidence has whole lines only.
_TRANSLATE: Final = re.compile(
    r"\bvirtio_iommu_translate mr=\S{1,80} rid=(?P<rid>\d{1,5})"
    r" addr=0x(?P<address>[0-9a-f]{1,16}) flag=(?P<flag>[0-3])$"
)
_REPORT: Final = re.compile(
    r"\bvirtio_iommu_report_fault FAULT reason=(?P<reason>\d{1,3}) flags=(?P<flags>\d{1,10})"
    r" endpoint=(?P<rid>\d{1,5}) address =0x(?P<address>[0-9a-f]{1,16})$"
)
_PAGE_FAULT: Final = re.compile(
    r"\bamdvi_page_fault error: page fault accessing guest physical address 0x(?P<address>[0-9a-f]{1,16})$"
)
_RESULT: Final = re.compile(
    r"\bamdvi_translation_result devid: (?P<devid>[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])"
    r" gpa 0x(?P<address>[0-9a-f]{1,16}) hpa 0x[0-9a-f]{1,16}$"
)
# The log target writes one of these before an event, by the build.
_TIME: Final = re.compile(r"(?P<date>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})Z |\d{1,10}@(?P<seconds>\d{1,12}\.\d{1,9}):")
_NAMES: Final = ("virtio_iommu_", "amdvi_")

_WRITE: Final = 2  # both of a translation's flag and of a fault's flags; 1 is a read
_READ: Final = 1
# Nobody says whose a page fault is when its second event is missing; no device has this name, so it is never expected.
_NOBODY: Final = "??:??.?"


class ViommuTrace:
    """Reads a trace line by line.

    Args:
        step: the step during which the lines appeared.
    """

    def __init__(self, step: int | None = None) -> None:
        self._step = step
        self._translated: tuple[int, int, int] | None = None  # virtio: requester, address, flag
        self._waiting: tuple[int, int, float | None] | None = None  # AMD: address, line, time

    def line(self, number: int, text: str) -> Iterable[FaultRecord]:
        """The faults that are complete with this line.

        Args:
            number: its 1-based number.
            text: the line, without the line break.
        """
        if not any(name in text for name in _NAMES):
            return
        if match := _TRANSLATE.search(text):
            self._translated = int(match["rid"]), int(match["address"], 16), int(match["flag"])
        elif match := _REPORT.search(text):
            yield self._virtio(match, number, _time(text))
        elif match := _PAGE_FAULT.search(text):
            yield from self.end()
            self._waiting = int(match["address"], 16), number, _time(text)
        elif self._waiting and (match := _RESULT.search(text)) and self._waiting[0] == int(match["address"], 16):
            yield self._amd(match["devid"], *self._waiting)
            self._waiting = None

    def end(self) -> Iterable[FaultRecord]:
        """The fault that waits for a line that does not come."""
        if self._waiting is not None:
            yield self._amd(_NOBODY, *self._waiting)
        self._waiting = None

    def _virtio(self, match: re.Match[str], number: int, time: float | None) -> FaultRecord:
        requester, address = int(match["rid"]), int(match["address"], 16)
        flags = int(match["flags"]) & (_READ | _WRITE)
        if not flags and self._translated is not None and self._translated[:2] == (requester, address):
            flags = self._translated[2]
        access: dict[int, Literal["read", "write"]] = {_READ: "read", _WRITE: "write"}
        return FaultRecord(
            witness="trace",
            vendor="virtio",
            requester=requester_name(requester),
            access=access.get(flags),
            address=address,
            reason=int(match["reason"]),
            line=number,
            step=self._step,
            time=time,
        )

    def _amd(self, requester: str, address: int, number: int, time: float | None) -> FaultRecord:
        return FaultRecord(
            witness="trace",
            vendor="amd",
            requester=requester,
            access=None,
            address=address,
            reason=AMD_PAGE_FAULT,
            line=number,
            step=self._step,
            time=time,
        )


def without_translations(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines without those translations that led to no fault: each message-signalled interrupt is one."""
    kept: list[str] = []
    before: str | None = None  # a translation of virtio-iommu, needed if a fault comes next
    page_fault = False
    for line in lines:
        if "virtio_iommu_translate " in line:
            before = line
        elif "amdvi_translation_result " in line:
            if page_fault:
                kept.append(line)
            page_fault = False
        else:
            if before is not None and "virtio_iommu_report_fault " in line:
                kept.append(before)
            before = None
            page_fault = "amdvi_page_fault " in line
            kept.append(line)
    return tuple(kept)


def _time(text: str) -> float | None:
    match = _TIME.match(text)
    if match is None:
        return None
    if match["seconds"] is not None:
        return float(match["seconds"])
    try:
        return datetime.fromisoformat(f"{match['date']}+00:00").timestamp()
    except ValueError:  # no such date
        return None
