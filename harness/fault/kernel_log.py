"""DMAR fault records out of kernel log text, in every form that Linux has printed them in.

The forms differ by kernel, and what carries the log (console, ``dmesg``, journal, syslog, mail) adds prefixes, breaks
lines or cuts them off. So the text is not read line by line against whole patterns. It is taken apart into tokens (a
fault's head, its reason, a status line, a count of suppressed messages, a time stamp), wherever they stand, and then
put together again: a reason belongs to the head before it on its line, else to the oldest head that still waits for
one and that it fits. Every quantifier has an upper bound, so the time is linear in the length of the text.

Numbers: a value with ``0x`` is hexadecimal; addresses, indexes, PASIDs and the status register always are. A bare
reason code is decimal, because those kernels print it with ``%02d``: ``[fault reason 38]`` is 0x26 (source-id
verification) and ``[fault reason 113]`` is 0x71. Xen's bare reason codes are hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from harness.fault.reasons import Access, reason_access
from harness.results import FaultRecord, Record

_HEX: Final = r"(?:0x)?[0-9a-f]"
_BDF: Final = rf"(?:(?P<domain>[0-9a-f]{{4,8}}):)?(?P<bus>{_HEX}{{1,2}}):(?P<device>{_HEX}{{1,2}})\.(?P<function>[0-7])"
# "[DMA Read NO_PASID] Request device [02:01.2] fault addr 0x900000", "INTR-REMAP: Request device [[00:1f.0] fault
# index 1f" (the doubled bracket is in old kernels). What stands after the device may be cut off or replaced.
_HEAD: Final = (
    r"(?P<head>(?:DMA[ _](?P<access>Read|Write)|INTR-REMAP)"
    rf"(?:\s{{1,4}}NO_PASID|\s{{1,4}}PASID\s{{1,4}}(?P<pasid>{_HEX}{{1,8}}))?\s{{0,4}}[\]:]{{1,2}}\s{{0,4}}"
    rf"Request\s{{1,4}}device\s{{1,4}}\[{{1,2}}\s{{0,4}}{_BDF}\s{{0,4}}\]"
    rf"(?:\s{{1,4}}PASID\s{{1,4}}(?P<old_pasid>{_HEX}{{1,8}})(?![0-9a-fx]))?"
    rf"(?:\s{{1,4}}fault\s{{1,4}}(?:addr|index)\s{{1,4}}(?P<address>{_HEX}{{1,16}})(?![0-9a-fx]))?)"
)
_REASON: Final = (
    r"(?P<reason>\[\s{0,4}fault\s{1,4}reason\s{1,4}(?P<code>(?:0x)?[0-9a-f]{1,4})\s{0,4}\]"
    r"|(?:DMAR|INTR-REMAP):\s{0,4}reason\s{1,4}(?P<xen_code>[0-9a-f]{1,4})\s{1,4}-)"
)
_STATUS: Final = (
    rf"(?P<status>handling\s{{1,4}}fault\s{{1,4}}status\s{{1,4}}reg\s{{1,4}}(?P<value>{_HEX}{{1,8}})(?![0-9a-fx]))"
)
_SUPPRESSED: Final = (
    r"(?P<suppressed>\bdmar_fault(?:\.\w{1,40})?:\s{0,4}(?P<number>\d{1,18})\s{1,4}callbacks\s{1,4}suppressed)"
)
# "[   12.345678]", or the record prefix of /dev/kmsg: priority, sequence, microseconds, flags.
_TIME: Final = (
    r"(?P<time>\[\s{0,12}(?P<seconds>\d{1,10}\.\d{1,9})\]"
    r"|(?<!.)\d{1,4},\d{1,19},(?P<microseconds>\d{1,18}),[^;\n]{1,40};)"
)
_TOKEN: Final = re.compile("|".join((_HEAD, _REASON, _STATUS, _SUPPRESSED, _TIME)), re.IGNORECASE | re.ASCII)
_ESCAPES: Final = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
# Text of a reason ends at a line break, real or as /dev/kmsg writes it, and before the prefix of a message glued to it.
_TEXT_END: Final = re.compile(r"\\x0a|[\r\n]")
_GLUED_PREFIX: Final = re.compile(
    r"(?:\s{0,4}(?:<\d{1,3}>|\(XEN\)|\[VT-D\]|DMAR:|DRHD:|\[)){1,8}\s{0,4}$", re.IGNORECASE
)

# A head that has waited over so many lines gets no reason any more; without a bound, old heads would steal new reasons.
_PATIENCE: Final = 64
# "PASID ffffffff" is the kernel's way (5.x) to say that the request had none.
_NO_PASID: Final = 0xFFFFFFFF
# No kernel has a longer text for a reason; without a bound, a log without line breaks would become one.
_TEXT_LENGTH: Final = 400


class StatusLine(Record):
    """One ``DRHD: handling fault status reg N`` line: a fault interrupt came, whether or not its record was printed.

    Args:
        value: the fault status register.
        overflow: PFO, a fault came while the record of another device was pending, and was lost.
        pending: PPF, there is at least one record to read.
        index: FRI, the first record to read.
        line: 1-based line in the log.
        time: seconds since boot, or None.
    """

    value: int
    overflow: bool
    pending: bool
    index: int
    line: int
    time: float | None = None


class KernelFaults(Record):
    """What a kernel log says of faults.

    Args:
        records: one for each fault record printed, in order of appearance.
        suppressed: sum of the ``dmar_fault: N callbacks suppressed`` counts: messages that the rate limit swallowed.
        status: the status lines.
    """

    records: tuple[FaultRecord, ...] = ()
    suppressed: int = 0
    status: tuple[StatusLine, ...] = ()

    @property
    def silent(self) -> bool:
        """Whether the log has no trace of any fault, printed or swallowed."""
        return not (self.records or self.suppressed or any(s.overflow or s.pending for s in self.status))

    @property
    def unreported(self) -> int:
        """How many fault interrupts were announced by a status line of which no record was printed."""
        announced = sum(1 for s in self.status if s.pending)
        return max(0, announced - len(self.records))


@dataclass
class _Fault:
    """A fault as far as its tokens have been seen."""

    requester: str
    access: Access | None
    address: int | None
    index: int | None
    pasid: int | None
    line: int
    time: float | None
    reason: int | None = None
    text: str | None = None

    def record(self) -> FaultRecord:
        return FaultRecord(
            witness="kernel",
            requester=self.requester,
            access=self.access,
            address=self.address,
            reason=self.reason,
            reason_text=self.text,
            pasid=self.pasid,
            line=self.line,
            time=self.time,
            index=self.index,
        )


@dataclass
class _Reader:
    """Puts the tokens together."""

    faults: list[_Fault] = field(default_factory=list)
    waiting: list[_Fault] = field(default_factory=list)
    status: list[StatusLine] = field(default_factory=list)
    suppressed: int = 0

    def line(self, number: int, text: str, *, last: bool) -> None:
        """Read one line; ``last`` says that it may have been cut off at its end."""
        if "\x1b" in text:
            text = _ESCAPES.sub("", text)
        while self.waiting and number - self.waiting[0].line > _PATIENCE:
            self.waiting.pop(0)
        time: float | None = None
        here: _Fault | None = None
        tokens = list(_TOKEN.finditer(text))
        for position, token in enumerate(tokens):
            cut = last and token.end() == len(text)
            match token.lastgroup:
                case "time":
                    time = _time(token)
                case "head":
                    here = _head(token, number, time, cut=cut)
                    self.faults.append(here)
                    self.waiting = [*self.waiting[-_PATIENCE:], here]
                case "reason":
                    end = tokens[position + 1].start() if position + 1 < len(tokens) else len(text)
                    self._reason(_code(token), _reason_text(text[token.end() : end]), here)
                    here = None
                case "status":
                    self.status.append(_status(token, number, time))
                case "suppressed":
                    self.suppressed += int(token["number"])

    def _reason(self, code: int, text: str | None, here: _Fault | None) -> None:
        """Give a reason to the head before it on the line, else to the oldest waiting head that it fits."""
        fault = here
        if fault is None:
            implied = reason_access(code)
            kin = [f for f in self.waiting if (f.access == "interrupt") == (implied == "interrupt")]
            fault = next((f for f in kin if f.access == implied), kin[0] if kin else None)
        if fault is not None:
            fault.reason, fault.text = code, text
            self.waiting.remove(fault)


def parse_kernel_log(log: str | Iterable[str]) -> KernelFaults:
    """Find all that a kernel log says of DMAR faults.

    Args:
        log: the text, or its lines. A line may have any prefix. Only of a text is it known whether its last line is
            whole (it ends with a newline); the last one of a list of lines may have been cut off.

    Returns:
        The records in order of appearance. A field that the log does not say, or that may have been cut off in the
        middle, is None: a wrong address is worse than none.
    """
    lines = log.split("\n") if isinstance(log, str) else list(log)
    reader = _Reader()
    for number, text in enumerate(lines, 1):
        reader.line(number, text, last=number == len(lines))
    return KernelFaults(
        records=tuple(fault.record() for fault in reader.faults),
        suppressed=reader.suppressed,
        status=tuple(reader.status),
    )


def _head(token: re.Match[str], line: int, time: float | None, *, cut: bool) -> _Fault:
    interrupt = token["access"] is None
    # At the end of a text that was cut off, the last number may lack digits.
    address_text = None if cut else token["address"]
    pasid_text = token["pasid"] or (None if cut and token["address"] is None else token["old_pasid"])
    address = None if address_text is None else int(address_text, 16)
    pasid = None if pasid_text is None else int(pasid_text, 16)
    return _Fault(
        requester=_requester(token),
        access="interrupt" if interrupt else "read" if token["access"].lower() == "read" else "write",
        address=None if interrupt else address,
        index=address if interrupt else None,
        pasid=None if pasid == _NO_PASID else pasid,
        line=line,
        time=time,
    )


def _requester(token: re.Match[str]) -> str:
    domain = "" if token["domain"] is None else f"{token['domain'].lower()}:"
    return f"{domain}{int(token['bus'], 16):02x}:{int(token['device'], 16):02x}.{token['function']}"


def _code(token: re.Match[str]) -> int:
    if token["xen_code"] is not None:
        return int(token["xen_code"], 16)
    text = token["code"]
    return int(text, 10 if text.isdecimal() else 16)


def _reason_text(text: str) -> str | None:
    text = _GLUED_PREFIX.sub("", _TEXT_END.split(text[:_TEXT_LENGTH], maxsplit=1)[0])
    return text.strip() or None


def _status(token: re.Match[str], line: int, time: float | None) -> StatusLine:
    value = int(token["value"], 16)
    return StatusLine(
        value=value,
        overflow=bool(value & 1),
        pending=bool(value & 2),
        index=value >> 8 & 0xFF,
        line=line,
        time=time,
    )


def _time(token: re.Match[str]) -> float:
    if token["seconds"] is not None:
        return float(token["seconds"])
    return int(token["microseconds"]) / 1e6
