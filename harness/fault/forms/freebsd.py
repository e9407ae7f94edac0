"""VT-d's faults as FreeBSD prints them, in one line of numbers.

``DMAR0: ahci0: pci0:31:2 sid fa fault acc 1 adt 0x0 reason 0x6 addr fff00000``: ``sid`` is the requester ID, in
hexadecimal; what stands before it is the function that the system knows under it. ``acc`` is the T bit of the fault
record, 1 for a read. Of an interrupt the upper sixteen bits of ``addr`` are the index.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from harness.fault.forms.common import Finds, Form, Found, Line
from harness.fault.pci import requester_name
from harness.fault.reasons import is_interrupt_reason
from harness.results import Access

_FAULT: Final = re.compile(
    r"pci\d{1,3}:\d{1,3}:\d{1,3} sid (?P<sid>[0-9a-f]{1,4}) fault acc (?P<read>[01])"
    r"(?: adt 0x[0-9a-f]{1,2} reason 0x(?P<reason>[0-9a-f]{1,2}) addr(?: (?P<address>[0-9a-f]{1,16})(?![0-9a-fx]))?)?",
    re.ASCII,
)


class FreebsdForm(Form):
    """Reads FreeBSD's fault lines."""

    triggers: ClassVar[tuple[bytes, ...]] = (b"fault acc",)

    def read(self, line: Line, finds: Finds) -> int:
        """Read a line; everything of a fault stands on one."""
        end = 0
        for match in line.finds(_FAULT):
            end = match.end()
            reason = None if match["reason"] is None else int(match["reason"], 16)
            number = None if match["address"] is None or line.cut(end) else int(match["address"], 16)
            interrupt = _access(False, reason) == "interrupt"
            finds.faults.append(
                Found(
                    vendor="freebsd",
                    requester=requester_name(int(match["sid"], 16)),
                    line=line.number,
                    column=line.base + match.start(),
                    time=line.time_at(match.start()),
                    access=_access(match["read"] == "1", reason),
                    address=None if interrupt else number,
                    reason=reason,
                    index=number >> 48 if interrupt and number is not None else None,
                )
            )
        return end


def _access(read: bool, reason: int | None) -> Access | None:
    """Of a line that ends before the reason nobody knows whether it was an interrupt."""
    if reason is None:
        return None
    if is_interrupt_reason(reason):
        return "interrupt"
    return "read" if read else "write"
