"""VT-d's faults, as Linux and as Xen print them, put together out of their pieces.

What carries the log (console, ``dmesg``, journal, syslog, mail) adds prefixes, breaks lines or cuts them off. So the
text is not read line by line against whole patterns. It is taken apart into tokens (a fault's head, its reason, a
status line, a count of suppressed messages), wherever they stand, and then put together again: a reason belongs to the
head before it on its line, else to the oldest head that still waits for one and that it fits.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from harness.fault.forms import intel, xen
from harness.fault.forms.common import PATIENCE, TIME, Finds, Form, Found, Line, bdf, words
from harness.fault.reasons import reason_access
from harness.results import Access, StatusLine

_TOKEN: Final = re.compile(
    "|".join((intel.HEAD, intel.REASON, xen.REASON, intel.STATUS, intel.SUPPRESSED, xen.MARK, f"(?P<time>{TIME})")),
    re.IGNORECASE | re.ASCII,
)
# Text of a reason ends at a line break, real or as /dev/kmsg writes it, and before the prefix of a message glued to it.
_TEXT_END: Final = re.compile(r"\\x0a|[\r\n\0]")
_GLUED_PREFIX: Final = re.compile(
    r"(?:\s{0,4}(?:<\d{1,3}>|\(XEN\)|\[VT-D\]|DMAR:|DRHD:|\[)){1,8}\s{0,4}$", re.IGNORECASE
)
# No kernel has a longer text for a reason; without a bound, a log without line breaks would become one.
_TEXT_LENGTH: Final = 400
_ACCESS: Final[dict[str, Access]] = {"read": "read", "write": "write"}


class VtdForm(Form):
    """Reads VT-d's fault lines of Linux and of Xen."""

    triggers: ClassVar[tuple[bytes, ...]] = (
        b"dma read",
        b"dma_read",
        b"dma write",
        b"dma_write",
        b"intr-remap",
        b"unknown: request",
        b"handling",
        b"callbacks",
    )

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Found] = []
        self._here: Found | None = None
        self._xen = False

    def read(self, line: Line, finds: Finds) -> int:
        """Read a line, or a piece of one: the head and the marks of the pieces before count for the later ones."""
        if line.base == 0:
            self._here, self._xen = None, False
        while self._waiting and line.number - self._waiting[0].line > PATIENCE:
            self._waiting.pop(0).settled = True
        tokens = list(line.finds(_TOKEN))
        for position, token in enumerate(tokens):
            match token.lastgroup:
                case "head":
                    self._head(_head(token, line, xen=self._xen), finds)
                case "reason" | "xen_reason":
                    end = tokens[position + 1].start() if position + 1 < len(tokens) else len(line.text)
                    self._reason(token, _reason_text(line.text[token.end() : min(end, token.end() + _TEXT_LENGTH)]))
                case "mark":
                    self._mark()
                case "status":
                    _status(token, line, finds)
                case "suppressed":
                    finds.suppressed += int(token["number"])
        self.until = self._waiting[-1].line + PATIENCE if self._waiting else 0
        return tokens[-1].end() if tokens else 0

    def _head(self, found: Found, finds: Finds) -> None:
        finds.faults.append(found)
        self._here = found
        if len(self._waiting) > PATIENCE:
            self._waiting.pop(0).settled = True
        self._waiting.append(found)

    def _mark(self) -> None:
        """Xen says who it is before the head, and in old versions behind it."""
        self._xen = True
        if self._here is not None:
            self._here.vendor = "xen"

    def _reason(self, token: re.Match[str], text: str | None) -> None:
        """Give a reason to the head before it on the line, else to the oldest waiting head that it fits."""
        of_xen = token["xen_code"] is not None
        code = int(token["xen_code"], 16) if of_xen else intel.code(token["code"])
        fault, self._here = self._here, None
        if fault is None:
            implied = reason_access(code)
            kin = [f for f in self._waiting if (f.access == "interrupt") == (implied == "interrupt")]
            fault = next((f for f in kin if f.access == implied), kin[0] if kin else None)
        if fault is None:
            return
        fault.reason, fault.reason_text, fault.settled = code, text, True
        if of_xen:
            fault.vendor = "xen"
        if fault in self._waiting:
            self._waiting.remove(fault)


def _head(token: re.Match[str], line: Line, *, xen: bool) -> Found:
    cut = line.cut(token.end())
    interrupt = token["access"] is None and token["unknown"] is None
    # At the end of a text that was cut off, the last number may lack digits.
    address_text = None if cut else token["address"]
    pasid_text = token["pasid"] or (None if cut and token["address"] is None else token["old_pasid"])
    address = None if address_text is None else int(address_text, 16)
    pasid = None if pasid_text is None else int(pasid_text, 16)
    return Found(
        vendor="xen" if xen or token["unknown"] is not None else "intel",
        requester=bdf(token["bus"], token["device"], token["function"], token["domain"]),
        line=line.number,
        column=line.base + token.start(),
        time=line.time_at(token.start()),
        access="interrupt" if interrupt else _ACCESS.get((token["access"] or "").lower()),
        address=None if interrupt else address,
        index=address if interrupt else None,
        pasid=None if pasid == intel.NO_PASID else pasid,
        settled=False,
    )


def _reason_text(text: str) -> str | None:
    return words(_GLUED_PREFIX.sub("", _TEXT_END.split(text, maxsplit=1)[0]))


def _status(token: re.Match[str], line: Line, finds: Finds) -> None:
    # Also of one that may lack digits: that an interrupt came is worth more than which bits were set.
    value = int(token["value"], 16)
    finds.status.append(
        StatusLine(
            value=value,
            overflow=bool(value & 1),
            pending=bool(value & 2),
            index=value >> 8 & 0xFF,
            line=line.number,
            time=line.time_at(token.start()),
        )
    )
