"""The picture of a cell's IOVA space: IOVAs from left to right, steps from top to bottom, what is unused compressed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from harness.report.html.mapped import Reach, Span, reaches_of, spans_of, tables_of
from harness.report.text import one_line
from harness.results import Evidence, FaultRecord

_PAGE: Final = 4096
_WIDTH: Final = 760.0
_LEFT: Final = 132.0
_ROW: Final = 22.0
_TOP: Final = 46.0
_SPANS: Final = 40
_POINTS: Final = 60
_GAP: Final = 1 << 14
_LABEL: Final = 88.0
_LABEL_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with its class, its words and what a pointer shows."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str
    title: str


@dataclass(frozen=True, slots=True)
class Label:
    """A place on the axis with its address."""

    x: float
    y: float
    text: str
    fault: bool


@dataclass(frozen=True, slots=True)
class Space:
    """The picture, in units of its own.

    Args:
        width: of all.
        height: of all.
        top: where the steps begin.
        left: where the IOVAs begin.
        rows: the steps: y of its middle, text.
        gaps: x of the breaks, and how much is left out.
        spans: mappings and reservations.
        marks: DMAs, faults and what the tables said.
        labels: addresses.
        facts: what the picture shows, as sentences.
        left_out: how many mappings there was no room for.
    """

    width: float
    height: float
    top: float
    left: float
    rows: tuple[tuple[float, str], ...]
    gaps: tuple[tuple[float, float, str], ...]
    spans: tuple[Box, ...]
    marks: tuple[Box, ...]
    labels: tuple[Label, ...]
    facts: tuple[str, ...]
    left_out: int


def space_of(evidence: Evidence | None, faults: Iterable[FaultRecord]) -> Space | None:
    """The picture; None when no step has to do with IOVAs.

    Args:
        evidence: the steps.
        faults: those of the witness that knows the step; others have no place in it.
    """
    if evidence is None:
        return None
    refused = [fault for fault in faults if fault.step is not None and fault.address is not None][:_POINTS]
    reaches = reaches_of(evidence)[:_POINTS]
    every = spans_of(evidence)
    spans = _chosen(every, refused)
    tables = tables_of(evidence)[:_POINTS]
    if not spans and not refused and not reaches:
        return None
    axis = _Axis([*((span.first, span.end) for span in spans), *((one.first, one.first + one.size) for one in reaches),
                  *(((fault.address or 0), (fault.address or 0) + 1) for fault in refused),
                  *((first, first + size) for _, first, size, _ in tables)])  # fmt: skip
    steps = _steps(evidence, spans, reaches, refused, tables)
    rows = {index: _TOP + _ROW * (place + 0.5) for place, (index, _) in enumerate(steps)}
    bottom = _TOP + _ROW * len(steps)
    boxes = [_box(span, axis, rows, bottom) for span in spans]
    marks = [
        *(_table(row, axis, rows) for row in tables),
        *(_reach(one, axis, rows, refused) for one in reaches),
        *(_fault(fault, axis, rows) for fault in refused),
    ]
    left = [span for span in every if span.until is None and span.access]
    return Space(
        width=_LEFT + _WIDTH + 16,
        height=bottom + 10,
        top=_TOP,
        left=_LEFT,
        rows=tuple((rows[index], text) for index, text in steps),
        gaps=axis.gaps,
        spans=tuple(boxes),
        marks=tuple(marks),
        labels=_labels(axis, spans, refused),
        facts=tuple(_facts(every, reaches, refused, left)),
        left_out=len(every) - len(spans),
    )


class _Axis:
    """IOVAs to places: ranges by the logarithm of their size, what lies between them as a short break."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        edges = sorted(
            {edge for low, high in ranges for edge in (low & ~(_PAGE - 1), (high + _PAGE - 1) & ~(_PAGE - 1))}
        )
        covered = [(low & ~(_PAGE - 1), (high + _PAGE - 1) & ~(_PAGE - 1)) for low, high in ranges]
        self._edges = edges
        weights, breaks = [], []
        for low, high in itertools.pairwise(edges):
            used = any(first < high and last > low for first, last in covered)
            gap = not used and high - low > _GAP
            weights.append(0.7 if gap else 1 + 0.9 * math.log2((high - low) / _PAGE))
            breaks.append(gap)
        unit = _WIDTH / sum(weights)
        self._places = [_LEFT]
        for weight in weights:
            self._places.append(self._places[-1] + weight * unit)
        self.gaps = tuple(
            (self._places[i], self._places[i + 1], _size(edges[i + 1] - edges[i]))
            for i, gap in enumerate(breaks)
            if gap
        )

    def at(self, address: int) -> float:
        """The place of an address, in units of the picture."""
        pieces = zip(itertools.pairwise(self._edges), itertools.pairwise(self._places), strict=True)
        for (low, high), (x, end) in pieces:
            if low <= address <= high:
                return x + (end - x) * (address - low) / (high - low)
        return self._places[-1]


def _chosen(spans: Sequence[Span], faults: Sequence[FaultRecord]) -> list[Span]:
    """As many as there is room for: those nearest to a fault first, then the first ones; in their own order."""
    if len(spans) <= _SPANS:
        return list(spans)
    places = [fault.address or 0 for fault in faults]

    def distance(span: Span) -> int:
        return min((max(span.first - place, place - span.end, 0) for place in places), default=0)

    nearest = sorted(range(len(spans)), key=lambda i: (distance(spans[i]), i))[:_SPANS]
    return [spans[i] for i in sorted(nearest)]


def _steps(
    evidence: Evidence,
    spans: Sequence[Span],
    reaches: Sequence[Reach],
    faults: Sequence[FaultRecord],
    tables: Sequence[tuple[int, int, int, str]],
) -> list[tuple[int, str]]:
    """The steps that the picture is about, with their words."""
    wanted = {span.since for span in spans} | {span.until for span in spans if span.until is not None}
    wanted |= {one.step for one in reaches} | {fault.step for fault in faults if fault.step is not None}
    wanted |= {row[0] for row in tables}
    return [(step.index, one_line(f"{step.index} {step.kind}")[:20]) for step in evidence.steps if step.index in wanted]


def _box(span: Span, axis: _Axis, rows: dict[int, float], bottom: float) -> Box:
    x, end = axis.at(span.first), axis.at(span.end)
    y = rows.get(span.since, _TOP)
    until = rows[span.until] if span.until in rows else bottom + 4
    state = "" if span.until is not None else ", there at the end"
    what = {"": "reserved", "r": "read only", "w": "write only", "rw": "read and write"}[span.access]
    title = f"{span.name} {span.first:#x} to {span.end - 1:#x}, {_size(span.size)}, {what}; from step {span.since}"
    title += f" to step {span.until}" if span.until is not None else state
    kind = "reserved" if not span.access else f"mapped {span.access}{' left' if span.until is None else ''}"
    width = max(end - x, 2.0)
    text = f"{span.name} {span.access}".strip() if width > 7.0 * (len(span.name) + 3) else ""
    return Box(x, y, width, max(until - y, 3.0), kind, one_line(text), one_line(title))


def _reach(one: Reach, axis: _Axis, rows: dict[int, float], faults: Sequence[FaultRecord]) -> Box:
    x = axis.at(one.first)
    width = max(axis.at(one.first + one.size) - x, 4.0)
    refused = any(
        fault.step == one.step and one.first & -_PAGE <= (fault.address or 0) < one.first + one.size for fault in faults
    )
    access = "write" if one.write else "read"
    title = f"step {one.step}: DMA {access} of {one.size} bytes at {one.first:#x}{', refused' if refused else ''}"
    return Box(x, rows[one.step] - 3, width, 6, f"dma {access}", "", title)


def _fault(fault: FaultRecord, axis: _Axis, rows: dict[int, float]) -> Box:
    address = fault.address or 0
    reason = "" if fault.reason is None else f", reason {fault.reason:#04x}"
    title = f"step {fault.step}: fault, {fault.requester} {fault.access} {address:#x}{reason}"
    return Box(axis.at(address), rows.get(fault.step or 0, _TOP), 0, 0, "fault", "", one_line(title))


def _table(row: tuple[int, int, int, str], axis: _Axis, rows: dict[int, float]) -> Box:
    step, first, size, access = row
    x = axis.at(first)
    title = f"step {step}: by the IOMMU's tables {first:#x} to {first + size - 1:#x} is mapped, {access}"
    return Box(x, rows[step] + 5, max(axis.at(first + size) - x, 2.0), 3, "table", "", one_line(title))


def _labels(axis: _Axis, spans: Sequence[Span], faults: Sequence[FaultRecord]) -> tuple[Label, ...]:
    """Addresses that have room: of faults first, then where spans begin. Two rows, none over another."""
    wanted = {fault.address or 0: True for fault in faults}
    for span in spans:
        wanted.setdefault(span.first, False)
    taken: list[list[float]] = [[] for _ in range(_LABEL_ROWS)]
    found = []
    for address, fault in sorted(wanted.items(), key=lambda item: (not item[1], item[0])):
        x = axis.at(address)
        for number, row in enumerate(taken):
            if all(abs(x - other) >= _LABEL for other in row):
                row.append(x)
                found.append(Label(x, 14.0 + 15.0 * number, f"{address:#x}", fault))
                break
    return tuple(found)


def _facts(
    spans: Sequence[Span], reaches: Sequence[Reach], faults: Sequence[FaultRecord], left: Sequence[Span]
) -> Iterable[str]:
    mapped = [span for span in spans if span.access]
    yield f"{len(mapped)} mapping{'s' * (len(mapped) != 1)}, {len(reaches)} DMA{'s' * (len(reaches) != 1)}."
    for fault in faults[:5]:
        at = fault.address or 0
        here = next((span for span in mapped if span.first <= at < span.end and _alive(span, fault.step or 0)), None)
        was = next(
            (s for s in mapped if s.first <= at < s.end and s.until is not None and s.until <= (fault.step or 0)), None
        )
        before = max((span for span in mapped if span.end <= at and _alive(span, fault.step or 0)), key=lambda s: s.end,
                     default=None)  # fmt: skip
        if here is not None:
            where = f"inside '{here.name}', which is mapped {here.access}"
        elif was is not None:
            where = f"where '{was.name}' was mapped until step {was.until}"
        elif before is not None:
            where = (
                f"{_size(at - before.end)} behind the end of '{before.name}'"
                if at > before.end
                else f"right behind '{before.name}'"
            )
        else:
            where = "where nothing is mapped"
        yield one_line(f"The fault of step {fault.step} at {at:#x} is {where}.")
    if left:
        names = list(dict.fromkeys(span.name for span in left))
        total = sum(span.size for span in left)
        yield one_line(
            f"At the end {_size(total)} were still mapped: {', '.join(names[:6])}{' ...' * (len(names) > 6)}."
        )


def _alive(span: Span, step: int) -> bool:
    return span.since <= step and (span.until is None or span.until > step)


def _size(size: int) -> str:
    """``64 KiB``, ``1.5 GiB``; less than a KiB in bytes."""
    value, unit = float(size), "bytes"
    for name in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if value < 1024:
            break
        value, unit = value / 1024, name
    return f"{value:.4g} {unit}"
