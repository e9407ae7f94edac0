"""What a kernel log says of faults, as one value: for logs that fit in memory."""

from __future__ import annotations

from collections.abc import Iterable

from harness.fault.reader import LogReader
from harness.results import FaultRecord, Record, StatusLine

__all__ = ["KernelFaults", "StatusLine", "parse_kernel_log"]


class KernelFaults(Record):
    """What a kernel log says of faults.

    Args:
        records: one for each fault record printed, in order of appearance.
        suppressed: sum of the ``dmar_fault: N callbacks suppressed`` counts: messages that the rate limit swallowed.
        status: the status lines of VT-d.
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


def parse_kernel_log(log: str | Iterable[str]) -> KernelFaults:
    """Find all that a kernel log says of faults, in every form (``harness/fault/forms``).

    Args:
        log: the text, or its lines. A line may have any prefix. Only of a text is it known whether its last line is
            whole (it ends with a newline); the last one of a list of lines may have been cut off.

    Returns:
        The records in order of appearance. A field that the log does not say, or that may have been cut off in the
        middle, is None: a wrong address is worse than none.
    """
    records: list[FaultRecord] = []
    status: list[StatusLine] = []
    reader = LogReader(records.append, status.append)
    if isinstance(log, str):
        reader.feed(_bytes(log))
    else:
        lines = list(log)
        for number, text in enumerate(lines, 1):
            reader.line(_bytes(text), last=number == len(lines))
    reader.close()
    return KernelFaults(records=tuple(records), suppressed=reader.suppressed, status=tuple(status))


def _bytes(text: str) -> bytes:
    # A log that was decoded may hold half of a surrogate pair; no text is an error.
    return text.encode("utf-8", "surrogatepass")
