"""The faults of both witnesses by step: they have a clock each, which cannot be compared, so the order is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from harness.report.text import fault_line, one_line
from harness.results import CellResult, FaultRecord

_COLUMNS: Final = 48
_LEFT: Final = 96.0
_WIDTH: Final = 780.0
_LANE: Final = 34.0
_TOP: Final = 10.0
_PAGE: Final = 4096

WITNESSES: Final = {"trace": "QEMU's trace", "kernel": "kernel log", "registers": "registers"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A fault in its lane: place, access, how many at that place, what a pointer shows."""

    x: float
    y: float
    access: str
    count: int
    title: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The picture, in units of its own.

    Args:
        width: of all.
        height: of all.
        lanes: y and name of each witness.
        columns: x, step's number, whether it has a fault; ``?`` at the end is for faults of no known step.
        marks: the faults.
        matched: how many of the second witness' faults got their step from the trace.
    """

    width: float
    height: float
    lanes: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str, bool], ...]
    marks: tuple[Mark, ...]
    matched: int


def timeline_of(cell: CellResult) -> Timeline | None:
    """The picture of a cell's faults; None without a fault."""
    if cell.verdict is None or not cell.verdict.faults:
        return None
    faults = cell.verdict.faults
    placed = [(fault, _step(fault, faults)) for fault in faults]
    with_faults = {step for _, step in placed if step is not None}
    steps = sorted({step.index for step in cell.evidence.steps} if cell.evidence else with_faults)
    if len(steps) > _COLUMNS:
        steps = sorted(with_faults)[:_COLUMNS]
    columns: list[int | None] = [*steps]
    if any(step not in columns for _, step in placed):
        columns.append(None)
    width = min(_WIDTH / max(len(columns), 1), 64.0)
    place = {column: _LEFT + width * (number + 0.5) for number, column in enumerate(columns)}
    witnesses = [name for name in WITNESSES if name == "trace" or any(fault.witness == name for fault in faults)]
    if len(witnesses) == 1 and cell.versions is not None:
        witnesses.append("kernel" if cell.versions.kernel else "registers")
    lanes = {name: _TOP + _LANE * (number + 0.5) for number, name in enumerate(witnesses)}
    groups: dict[tuple[str, int | None, str], list[FaultRecord]] = {}
    for fault, step in placed:
        column = step if step in place else None
        groups.setdefault((fault.witness, column, fault.access or "unknown"), []).append(fault)
    return Timeline(
        width=_LEFT + _WIDTH + 10,
        height=_TOP + _LANE * len(lanes) + 24,
        lanes=tuple((y, WITNESSES[name]) for name, y in lanes.items()),
        columns=tuple((x, "?" if step is None else str(step), step in with_faults) for step, x in place.items()),
        marks=tuple(_marks(groups, place, lanes, width)),
        matched=sum(fault.step is None and step is not None for fault, step in placed),
    )


def _marks(
    groups: dict[tuple[str, int | None, str], list[FaultRecord]],
    place: dict[int | None, float],
    lanes: dict[str, float],
    width: float,
) -> Iterable[Mark]:
    together: dict[tuple[str, int | None], list[str]] = {}
    for witness, step, access in groups:
        together.setdefault((witness, step), []).append(access)
    for (witness, step, access), records in groups.items():
        here = together[witness, step]
        x = place[step] + (here.index(access) - (len(here) - 1) / 2) * min(16.0, width / 3)
        lines = [one_line(fault_line(record)) for record in records]
        more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
        count = sum(record.count for record in records)
        yield Mark(x, lanes[witness], access, count, f"{WITNESSES[witness]}: {'; '.join(lines[:3])}{more}")


def _step(fault: FaultRecord, faults: Sequence[FaultRecord]) -> int | None:
    """The step of a fault; of one that does not know it, that of the first equal fault of the trace."""
    if fault.step is not None:
        return fault.step
    for other in faults:
        if other.step is not None and _same(fault, other):
            return other.step
    return None


def _same(one: FaultRecord, other: FaultRecord) -> bool:
    """Whether two witnesses tell of one fault: requester, access, reason and page."""
    pages = [None if fault.address is None else fault.address // _PAGE for fault in (one, other)]
    return (
        one.requester.rpartition("0000:")[2] == other.requester.rpartition("0000:")[2]
        and one.access == other.access
        and pages[0] == pages[1]
        and one.index == other.index
        and (one.reason == other.reason or None in (one.reason, other.reason))
    )
