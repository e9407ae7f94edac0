"""Reads a log of any size in chunks and finds the faults in it, in every form that ``forms`` knows.

Of a log nearly every line is about something else. So a chunk is first searched for a few byte strings, one of which
is in every line of a fault; that runs nearly at memory speed. Only lines that have one are looked at (and read by the
forms whose ``triggers`` they have), and the lines after them for as long as a form waits for the rest of a fault. What
is found does not depend on where the chunks end.

A line longer than ``PIECE`` is looked at in pieces of that length, each with a look ahead at what follows, so that
memory stays bounded for a log without line breaks too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import BinaryIO, Final

from harness.fault.forms import ESCAPES, PATIENCE, Form, Found, Line, all_forms
from harness.fault.forms.common import Finds
from harness.results import FaultRecord, StatusLine

CHUNK: Final = 1 << 20
PIECE: Final = 1 << 16
# No form's match is longer.
_AHEAD: Final = 1 << 11
# No escape sequence is longer. A piece does not end inside one.
_ESCAPE: Final = 32
_ESC: Final = b"\x1b["
# Each search for one costs a pass over the whole log, so these are few; one of them is in every line that has a trigger
# of a form in the way in which kernels print it. In a coloured line it may be in pieces.
_MARKS: Final = (
    b"request",
    b" fault",
    b"_page_fault",
    b"logged [",
    b"_tab",
    b"_inv_t",
    b"callbacks",
    b"event 0x",
    b"sid: 0",
    _ESC,
)
# So many faults at most wait for one before them on the same endless line.
_PENDING: Final = 4096


class LogReader:
    """Finds the faults of one log, given piece by piece.

    Args:
        on_fault: gets each fault when nothing can be added to it any more, in the order of the log.
        on_status: gets each VT-d status line.

    ``suppressed`` is the sum of the counts of messages that Linux says it has left out.
    """

    def __init__(self, on_fault: Callable[[FaultRecord], None], on_status: Callable[[StatusLine], None]) -> None:
        self.suppressed = 0
        self._on_fault = on_fault
        self._on_status = on_status
        self._forms = all_forms()
        self._pending: deque[Found] = deque()
        self._number = 1
        self._rest = b""
        self._long = False
        self._begin_line()

    def feed(self, chunk: bytes) -> None:
        """Read on; the last line stays open until more comes, or the log ends."""
        data = self._rest + chunk
        if self._long:
            end = data.find(b"\n")
            if end < 0:
                self._rest = self._pieces(data)
                return
            self._end_line(data[:end], last=False)
            self._number += 1
            data = data[end + 1 :]
            self._long = False
        end = data.rfind(b"\n") + 1
        if end:
            self._lines(data, end)
            data = data[end:]
        self._rest = data
        if len(data) > PIECE + _AHEAD:
            self._long = True
            self._rest = self._pieces(data)

    def line(self, text: bytes, *, last: bool) -> None:
        """Read one line, whatever is in it; ``last`` says that it may have been cut off at its end."""
        self._end_line(text, last=last)
        self._number += 1

    def close(self) -> None:
        """The log is over. Its last line may have been cut off, unless a newline ended it."""
        if self._rest or self._long:
            self._end_line(self._rest, last=True)
        self._rest = b""
        self._flush(everything=True)

    def _lines(self, data: bytes, end: int) -> None:
        """Read whole lines: those with a trigger, and those for which a form waits."""
        position = 0
        for start in (*self._candidates(data[:end].lower()), end):
            while position < start and self._waits():
                position = self._take(data, position)
            if position < start:
                self._number += data.count(b"\n", position, start)
                position = start
            if position == start < end:
                position = self._take(data, position)
        self._flush()

    def _candidates(self, lower: bytes) -> list[int]:
        """Where the lines begin that may have a trigger."""
        starts: set[int] = set()
        for mark in _MARKS:
            found = lower.find(mark)
            while found >= 0:
                starts.add(lower.rfind(b"\n", 0, found) + 1)
                found = lower.find(mark, lower.find(b"\n", found))
        return sorted(starts)

    def _waits(self) -> bool:
        return any(form.until >= self._number for form in self._forms)

    def _take(self, data: bytes, start: int) -> int:
        """Read the line that begins there; gives the start of the next one."""
        end = data.index(b"\n", start)
        self._end_line(data[start:end], last=False)
        self._number += 1
        return end + 1

    def _begin_line(self) -> None:
        self._base = 0
        self._time: float | None = None
        self._resume: dict[Form, int] = {}

    def _end_line(self, data: bytes, *, last: bool) -> None:
        """Read the line's last pieces."""
        data = self._pieces(data)
        self._piece(data, len(data), last=last)
        self._begin_line()
        self._flush()

    def _pieces(self, data: bytes) -> bytes:
        """Read as many whole pieces of the line as there are; gives the rest."""
        start = 0
        while len(data) - start > PIECE + _AHEAD:
            border = start + PIECE
            escape = data.find(_ESC[:1], border - _ESCAPE, border)
            border = border if escape < 0 else escape
            self._piece(data[start : border + _AHEAD], border - start, last=False)
            self._flush()
            start = border
        return data[start:] if start else data

    def _piece(self, raw: bytes, border: int, *, last: bool) -> None:
        """Have the forms look at a piece; what begins behind the border belongs to the next one."""
        text = raw.decode("latin-1")
        if "\x1b" in text:
            before = ESCAPES.sub("", text[:border])
            text = before + ESCAPES.sub("", text[border:])
            border = len(before)
            raw = text.encode("latin-1")
        lower = raw.lower()
        forms = [f for f in self._forms if f.until >= self._number or any(t in lower for t in f.triggers)]
        resume, self._resume = self._resume, {}
        if forms:
            line = Line(self._number, text, 0, border, self._base, last, self._time)
            finds = Finds()
            for form in forms:
                line.start = resume.get(form, 0)
                end = form.read(line, finds)
                if end > border:
                    self._resume[form] = end - border
            self._keep(finds)
            self._time = line.time_at(border)
        self._base += border

    def _keep(self, finds: Finds) -> None:
        self._pending.extend(sorted(finds.faults, key=lambda found: found.column))
        self.suppressed += finds.suppressed
        for status in finds.status:
            self._on_status(status)

    def _flush(self, *, everything: bool = False) -> None:
        """Give away, in order, what nothing can be added to any more."""
        pending = self._pending
        while pending and (
            everything or pending[0].settled or self._number - pending[0].line > PATIENCE or len(pending) > _PENDING
        ):
            found = pending.popleft()
            # Without a requester it was the beginning of a record of which the rest is missing.
            if found.requester:
                self._on_fault(found.record())


def read_log(stream: BinaryIO, reader: LogReader) -> None:
    """Read a stream to its end."""
    while chunk := stream.read(CHUNK):
        reader.feed(chunk)
    reader.close()
