"""Equal fault records taken together, in the order of the first ones, in bounded memory."""

from __future__ import annotations

from typing import Final

from harness.fault.trace import page_of
from harness.results import FaultRecord, StatusLine

LIMIT: Final = 100_000
"""So many kinds of fault are kept; of a log that has more, the later kinds are only counted."""


class Groups:
    """Takes records in the order of a log; equal are those of one vendor, requester, access, reason, PASID and page.

    ``dropped`` counts records of kinds beyond ``LIMIT``.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.dropped = 0
        self.status: list[StatusLine] = []
        self.interrupts = 0
        self._limit = limit
        self._first: dict[tuple[object, ...], FaultRecord] = {}
        self._counts: dict[tuple[object, ...], int] = {}

    def add(self, record: FaultRecord) -> None:
        """Count a record."""
        key = (
            record.vendor,
            record.requester,
            record.access,
            record.reason,
            record.pasid,
            record.index,
            page_of(record.address),
        )
        if key in self._counts:
            self._counts[key] += record.count
        elif len(self._first) < self._limit:
            self._first[key] = record
            self._counts[key] = record.count
        else:
            self.dropped += record.count

    def add_status(self, status: StatusLine) -> None:
        """Count a status line; the first one with each value is kept."""
        self.interrupts += 1
        if all(status.value & 0xFF != other.value & 0xFF for other in self.status):
            self.status.append(status)

    def records(self) -> tuple[FaultRecord, ...]:
        """One record for each kind, with its count."""
        return tuple(
            record if self._counts[key] == record.count else record.model_copy(update={"count": self._counts[key]})
            for key, record in self._first.items()
        )
