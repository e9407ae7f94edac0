"""A log to what it means: read, taken together, decoded, advised."""

from __future__ import annotations

from io import BytesIO
from typing import BinaryIO

from harness.fault.advice import advise
from harness.fault.decode import Context, facts, status_sentence
from harness.fault.groups import Groups
from harness.fault.reader import LogReader, read_log
from harness.fault.reasons import reason_name
from harness.results import Explanation, FaultRecord, LogExplanation


def explain_stream(stream: BinaryIO, context: Context | None = None) -> LogExplanation:
    """Read a log of any size and explain every fault in it."""
    groups = Groups()
    reader = LogReader(groups.add, groups.add_status)
    read_log(stream, reader)
    return LogExplanation(
        explanations=tuple(explain_record(record, context or Context()) for record in groups.records()),
        suppressed=reader.suppressed,
        notes=_notes(groups),
    )


def explain_text(text: str, context: Context | None = None) -> LogExplanation:
    """Explain a line or a few, which are whole."""
    return explain_stream(BytesIO(text.encode("utf-8", "surrogateescape") + b"\n"), context)


def explain_record(fault: FaultRecord, context: Context) -> Explanation:
    """One record in words."""
    advice = advise(fault, context)
    return Explanation(
        fault=fault,
        name=reason_name(fault.reason, fault.vendor),
        facts=facts(fault, context),
        causes=advice.causes,
        checks=advice.checks,
        scenarios=advice.scenarios,
    )


def _notes(groups: Groups) -> tuple[str, ...]:
    notes = []
    if groups.interrupts:
        plural = "" if groups.interrupts == 1 else "s"
        notes.append(f"{groups.interrupts} status line{plural} (DRHD: handling fault status reg)")
        notes += [f"line {status.line}: {status_sentence(status)}" for status in groups.status]
    if groups.dropped:
        notes.append(
            f"{groups.dropped} further records of kinds beyond the first {len(groups.records())} were not kept"
        )
    return tuple(notes)
