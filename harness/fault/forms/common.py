"""What all forms of fault lines share: the line that they look at, and the fault that they find in it.

A line's text has one character for each byte (Latin-1), so that positions mean the same for any encoding and no byte is
an error; what is kept of it as words is decoded as UTF-8. Every quantifier of a form's pattern has an upper bound, so
that the time is linear in the length of the text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final

from harness.results import Access, FaultRecord, StatusLine, Vendor

PATIENCE: Final = 64
"""Over how many lines the second half of a fault is waited for: without a bound, old halves would steal new ones."""

ESCAPES: Final = re.compile(r"\x1b\[[0-9;]{0,16}[A-Za-z]")
"""Colours, as ``dmesg`` and ``grep`` print them."""

TIME: Final = r"\[\s{0,12}(?P<seconds>\d{1,10}\.\d{1,9})\]"
"""The time stamp of the kernel: seconds since boot."""

_TIME: Final = re.compile(TIME)
# The record prefix of /dev/kmsg: priority, sequence, microseconds, flags.
_KMSG: Final = re.compile(r"\d{1,4},\d{1,19},(?P<microseconds>\d{1,18}),[^;\n]{1,40};", re.ASCII)


@dataclass(slots=True)
class Line:
    """A line, or one piece of a line that is too long to be looked at as a whole.

    Args:
        number: 1-based number of the line in the log.
        text: the line without its newline and without escape sequences; a piece goes on behind ``end``.
        start: where to begin: what is before was part of a find in the piece before.
        end: finds that begin there or later belong to the next piece.
        base: the column of the text's first character.
        last: whether the text may have been cut off at its end.
        time: the last time stamp of the pieces before, or None.
    """

    number: int
    text: str
    start: int
    end: int
    base: int = 0
    last: bool = False
    time: float | None = None
    _times: list[tuple[int, float]] | None = None

    def time_at(self, position: int) -> float | None:
        """The time stamp that stands last before the position; None without one."""
        found = self.time
        for where, seconds in self.times():
            if where > position:
                break
            found = seconds
        return found

    def times(self) -> list[tuple[int, float]]:
        """All time stamps of this piece with their positions."""
        if self._times is None:
            self._times = [
                (match.start(), float(match["seconds"])) for match in _TIME.finditer(self.text, 0, self.end + 32)
            ]
            kmsg = None if self.base else _KMSG.match(self.text)
            if kmsg is not None:
                self._times.insert(0, (0, int(kmsg["microseconds"]) / 1e6))
        return self._times

    def finds(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """The pattern's matches that begin in this piece."""
        for match in pattern.finditer(self.text, self.start):
            if match.start() >= self.end:
                return
            yield match

    def cut(self, position: int) -> bool:
        """Whether what ends at the position may lack characters: the log ends there, or a hole of NUL bytes begins."""
        if position >= len(self.text):
            return self.last
        return self.text[position] == "\0"


@dataclass(slots=True)
class Found:
    """A fault as far as it has been seen. ``settled`` means that no further line will add to it.

    The fields are those of ``FaultRecord``; ``requester`` is empty while it is not known.
    """

    vendor: Vendor
    requester: str
    line: int
    column: int
    time: float | None
    access: Access | None = None
    address: int | None = None
    reason: int | None = None
    reason_text: str | None = None
    pasid: int | None = None
    index: int | None = None
    flags: int | None = None
    settled: bool = True

    def record(self) -> FaultRecord:
        """The record of it."""
        return FaultRecord(
            witness="kernel",
            vendor=self.vendor,
            requester=self.requester,
            access=self.access,
            address=self.address,
            reason=self.reason,
            reason_text=self.reason_text,
            pasid=self.pasid,
            line=self.line,
            time=self.time,
            index=self.index,
            flags=self.flags,
        )


@dataclass
class Finds:
    """Where the forms put what they find on a line."""

    faults: list[Found] = field(default_factory=list)
    status: list[StatusLine] = field(default_factory=list)
    suppressed: int = 0


class Form(ABC):
    """Reads one form of fault lines; it may remember what a line began and a later line ends."""

    triggers: ClassVar[tuple[bytes, ...]]
    """Lower-case bytes, one of which is in every line that can begin or count something of this form."""

    def __init__(self) -> None:
        self.until = 0
        """The last line that this form wants to see although it has none of the triggers."""

    @abstractmethod
    def read(self, line: Line, finds: Finds) -> int:
        """Read a line and add what it says; gives the position behind the last match."""


def bdf(bus: str, device: str, function: str, domain: str | None = None) -> str:
    """A requester out of its hexadecimal parts: ``02:00.0`` or ``0000:02:00.0``."""
    return f"{'' if domain is None else domain.lower() + ':'}{int(bus, 16):02x}:{int(device, 16):02x}.{function}"


def words(text: str) -> str | None:
    """A piece of a line as words; None when nothing is left."""
    return text.encode("latin-1", "replace").decode("utf-8", "replace").strip() or None


def suppressed_pattern(*functions: str) -> str:
    """The pattern of the rate limit's count, which Linux prints after the name of the function that was limited."""
    return (
        rf"(?P<suppressed>\b(?:{'|'.join(functions)})(?:\.\w{{1,40}})?:\s{{0,4}}(?P<number>\d{{1,18}})\s{{1,4}}"
        r"callbacks\s{1,4}suppressed)"
    )
