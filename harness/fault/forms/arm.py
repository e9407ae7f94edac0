"""SMMUv3's events as Linux prints them.

Up to 6.13 only the record's four 64-bit words: ``arm-smmu-v3 arm-smmu-v3.0.auto: event 0x10 received:``, then one word
a line. Later kernels print two lines in words behind these: ``event: F_TRANSLATION client: 0000:01:00.0 sid: 0x100
ssid: 0 iova: 0x900000 ipa: 0`` and ``unpriv data write s1 "Input address caused fault" stag: 0``. Lines that belong
together have the same SMMU's name before them.

A stream ID is, on PCI, what the firmware's tables make of the requester ID: its lower sixteen bits as a rule. Where the
client is named, that is the requester.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from harness.fault.forms.common import Finds, Form, Found, Line, bdf, suppressed_pattern
from harness.fault.pci import requester_name
from harness.fault.vendors import SMMU_EVENTS

_EVENT: Final = re.compile(
    r": event (?P<raw>0x[0-9a-f]{2}) received:"
    r"|: event: (?P<name>[A-Z_]{1,32}) client: (?P<client>\(unassigned sid\)|[^\s:]{1,64}(?::[^\s:]{1,16}){0,3})"
    r" sid: (?P<sid>0x[0-9a-f]{1,8}|0)(?= )(?: ssid: (?P<ssid>0x[0-9a-f]{1,8}|0)(?![0-9a-fx]))?"
    r"(?: iova: (?P<iova>0x[0-9a-f]{1,16}|0)(?= ))?"
    r"|:(?:\\x09|\s){1,4}(?P<word>0x[0-9a-f]{16})(?![0-9a-fx])"
    r"|: (?:un)?priv (?:inst|data) (?P<access>read|write) s[12] "
    rf"|{suppressed_pattern('arm_smmu_evtq_thread', 'arm_smmu_dump_event')}",
    re.ASCII,
)
_PCI: Final = re.compile(r"(?P<domain>[0-9a-f]{4,8}):(?P<bus>[0-9a-f]{2}):(?P<slot>[01][0-9a-f])\.(?P<function>[0-7])")
_CODES: Final = {name: code for code, name in SMMU_EVENTS.items()}
# Events whose record has the input address, and whether it was read: of a translation.
_OF_ADDRESS: Final = frozenset({0x0B, 0x10, 0x11, 0x12, 0x13})
_PATIENCE: Final = 16
_OPEN: Final = 16
_SSV, _READ = 1 << 11, 1 << 35


class _Event:
    """An event of one SMMU as far as its lines have been seen."""

    def __init__(self, found: Found, words: int | None) -> None:
        self.found = found
        self.words = words  # how many 64-bit words were read; None for an event without them
        self.named = words is None


class ArmForm(Form):
    """Reads SMMUv3's events."""

    triggers: ClassVar[tuple[bytes, ...]] = (b"event 0x", b"sid: 0", b"callbacks")

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[str, _Event] = {}

    def read(self, line: Line, finds: Finds) -> int:
        """Read a line, and remember for each SMMU the event whose further lines are to come."""
        for smmu in [s for s, event in self._open.items() if line.number - event.found.line > _PATIENCE]:
            self._close(smmu)
        end = 0
        for match in line.finds(_EVENT):
            end = match.end()
            smmu = line.text[max(0, match.start() - 64) : match.start()].rpartition(" ")[2]
            if match["suppressed"] is not None:
                finds.suppressed += int(match["number"])
            elif match["raw"] is not None:
                code = int(match["raw"], 16)
                self._begin(smmu, _Event(_found(match, line, code), 0), finds)
            elif match["name"] is not None:
                self._named(smmu, match, line, finds)
            elif smmu in self._open:
                self._add(self._open[smmu], match)
        self.until = max((event.found.line for event in self._open.values()), default=-_PATIENCE) + _PATIENCE
        return end

    def _begin(self, smmu: str, event: _Event, finds: Finds) -> None:
        self._close(smmu)
        if len(self._open) >= _OPEN:
            self._close(next(iter(self._open)))
        self._open[smmu] = event
        finds.faults.append(event.found)

    def _close(self, smmu: str) -> None:
        event = self._open.pop(smmu, None)
        if event is not None:
            event.found.settled = True

    def _named(self, smmu: str, match: re.Match[str], line: Line, finds: Finds) -> None:
        """An event in words: the one whose 64-bit words stand before it, or one of its own."""
        sid, code = int(match["sid"], 16), _CODES.get(match["name"])
        client = _PCI.fullmatch(match["client"])
        requester = requester_name(sid & 0xFFFF)
        event = self._open.get(smmu)
        known = event is not None and not event.named and event.found.requester in ("", requester)
        if event is None or not known or (event.found.reason != code and code is not None):
            event = _Event(_found(match, line, code), None)
            self._begin(smmu, event, finds)
        found = event.found
        event.named = True
        found.requester = requester if client is None else bdf(*client.group("bus", "slot", "function", "domain"))
        found.reason_text = match["name"]
        if found.pasid is None and match["ssid"] is not None and not line.cut(match.end("ssid")):
            # Without words nobody can tell 0 from none.
            found.pasid = int(match["ssid"], 16) or None
        if found.address is None and match["iova"] is not None:
            found.address = int(match["iova"], 16)

    def _add(self, event: _Event, match: re.Match[str]) -> None:
        """A further line: a 64-bit word of the record, or the access in words."""
        found = event.found
        if match["access"] is not None:
            found.access = found.access or ("read" if match["access"] == "read" else "write")
        elif event.words is not None and event.words < 4:
            _word(found, event.words, int(match["word"], 16))
            event.words += 1


def _found(match: re.Match[str], line: Line, code: int | None) -> Found:
    return Found(
        vendor="arm",
        requester="",
        line=line.number,
        column=line.base + match.start(),
        time=line.time_at(match.start()),
        reason=code,
        reason_text=None if code is None else SMMU_EVENTS.get(code),
        settled=False,
    )


def _word(found: Found, position: int, value: int) -> None:
    """Take from a word of the record what it says."""
    if position == 0 and value & 0xFF == found.reason:
        found.requester = requester_name(value >> 32 & 0xFFFF)
        found.pasid = value >> 12 & 0xFFFFF if value & _SSV else None
    elif found.requester and found.reason in _OF_ADDRESS:
        if position == 1:
            found.access = "read" if value & _READ else "write"
        elif position == 2:
            found.address = value
