"""Fault records out of QEMU's trace (``-trace vtd_dmar_fault`` and the like): the ground truth.

QEMU walks a refused DMA word by word and prints a line for each, before the emulated fault register or the guest's
kernel suppress anything. ``collapse`` makes one fault of the lines that belong together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from harness.fault.pci import requester_name
from harness.fault.viommu_trace import ViommuTrace
from harness.results import Evidence, FaultRecord, StepEvidence

PAGE_SHIFT: Final = 12

# The format is "sid 0x%x fault %d addr 0x%lx write %d": the reason is decimal. Every number must be followed by what
# comes after it, because a line cut short would else give a wrong number instead of none. The log target writes a
# "PID@SECONDS.MICROSECONDS:" prefix when told to.
_FAULT: Final = re.compile(
    r"(?:\d{1,10}@(?P<time>\d{1,12}\.\d{1,9}):)?vtd_dmar_fault sid 0x(?P<sid>[0-9a-f]{1,8})"
    r" fault(?: -?(?P<reason>\d{1,5}) addr(?: 0x(?P<address>[0-9a-f]{1,16}) write(?: (?P<write>[01]))?)?)?"
)
_CLAMP: Final = "EDU: clamping DMA"


def parse_trace(lines: Iterable[str], step: int | None = None) -> tuple[FaultRecord, ...]:
    """One record for each fault line, in order; every other line is passed over.

    Args:
        lines: the trace, one event a line.
        step: the step during which the lines appeared.
    """
    found: list[FaultRecord] = []
    others = ViommuTrace(step)
    for number, line in enumerate(lines, 1):
        found += others.line(number, line)
        for match in _FAULT.finditer(line):
            reason, address, write, time = match.group("reason", "address", "write", "time")
            found.append(
                FaultRecord(
                    witness="trace",
                    requester=requester_name(int(match["sid"], 16)),
                    access=None if write is None else "write" if write == "1" else "read",
                    address=None if address is None else int(address, 16),
                    reason=None if reason is None else int(reason),
                    line=number,
                    step=step,
                    time=None if time is None else float(time),
                )
            )
    found += others.end()
    return tuple(found)


def page_of(address: int | None) -> int | None:
    """The 4 KiB page of an address: all that the kernel's log tells of it."""
    return None if address is None else address >> PAGE_SHIFT


def collapse(records: Iterable[FaultRecord]) -> tuple[FaultRecord, ...]:
    """Make one fault of all records of one step with equal requester, access, reason and page.

    The first record's address, line and time are kept, the counts are added up, the order is that of the first ones.
    """
    first: dict[tuple[object, ...], FaultRecord] = {}
    counts: dict[tuple[object, ...], int] = {}
    for record in records:
        key = (
            record.step,
            record.witness,
            record.requester,
            record.access,
            record.reason,
            page_of(record.address),
            record.pasid,
            record.index,
        )
        first.setdefault(key, record)
        counts[key] = counts.get(key, 0) + record.count
    return tuple(
        record if counts[key] == record.count else record.model_copy(update={"count": counts[key]})
        for key, record in first.items()
    )


def step_trace(step: StepEvidence) -> tuple[str, ...]:
    """The trace lines of a step.

    Those of a fork stand with the parent, since the host cannot tell the processes of a guest apart; only when the
    parent has none are the children's read.
    """
    if step.trace:
        return step.trace
    return tuple(line for child in step.children for line in step_trace(child))


def evidence_faults(evidence: Evidence) -> tuple[FaultRecord, ...]:
    """All faults of the trace, collapsed, with the step of each."""
    without = collapse(parse_trace(evidence.trace))
    return (*without, *(one for step in evidence.steps for one in collapse(parse_trace(step_trace(step), step.index))))


def clamped_lines(lines: Iterable[str]) -> tuple[str, ...]:
    """Lines in which the edu device says that it cut an address to its DMA mask.

    Then the device accessed another address than it was told to: the machine is set up wrongly, and whatever the
    witnesses say of the address is not about the code under test.
    """
    return tuple(line for line in lines if _CLAMP in line)
