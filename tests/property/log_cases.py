"""The golden corpus, and what holds of the reader for any log: for the property tests and for the fuzz session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.fault.reader import LogReader
from harness.results import FaultRecord, StatusLine

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = ("dmar", "xen", "freebsd", "amd", "virtio", "arm")
CORPUS = [path.read_bytes() for folder in FOLDERS for path in sorted((GOLDEN / folder).glob("*.log"))]

Result = tuple[list[FaultRecord], list[StatusLine], int]


def read_chunks(chunks: Iterable[bytes]) -> Result:
    """All that the reader finds."""
    records: list[FaultRecord] = []
    status: list[StatusLine] = []
    reader = LogReader(records.append, status.append)
    for chunk in chunks:
        reader.feed(chunk)
    reader.close()
    return records, status, reader.suppressed


def read(log: bytes) -> list[FaultRecord]:
    """The records of a log."""
    return read_chunks([log])[0]


def cut_up(log: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The log in chunks of these sizes; the rest is one more."""
    chunks = []
    for size in sizes:
        chunks.append(log[:size])
        log = log[size:]
    return [*chunks, log]


def same_whatever_the_chunks(log: bytes, sizes: Sequence[int]) -> None:
    """What is found does not depend on where the chunks end."""
    assert read_chunks(cut_up(log, sizes)) == read_chunks([log])


def same_or_less(cut: bytes, log: bytes) -> None:
    """A log that was cut off has no fault that the whole one has not, and no other number: at most fewer."""
    whole = read(log)
    parts = read(cut)
    assert len(parts) <= len(whole)
    for part, record in zip(parts, whole, strict=False):
        assert part.line == record.line
        assert part.requester.removeprefix("0000:") == record.requester.removeprefix("0000:")
        # The vendor of old Xen's lines is known from what stands behind the address.
        assert part.vendor == record.vendor or record.vendor == "xen"
        for name in ("access", "address", "reason", "pasid", "index", "flags"):
            assert getattr(part, name) in (None, getattr(record, name)), name
