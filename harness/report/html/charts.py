"""Where the time went: stages, slowest cells, points."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.qualified.records import Qualification
from harness.report.points import point_of, point_text, points_of, varying
from harness.report.text import one_line

_SLOWEST: Final = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart: what it is of, seconds, percent of the longest, further words, number of the cell or None."""

    label: str
    seconds: float
    percent: float
    text: str
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its title, what it shows in a sentence, and its bars."""

    title: str
    about: str
    bars: tuple[Bar, ...]


def charts_of(one: Qualification) -> tuple[Chart, ...]:
    """The charts; none without a cell."""
    if not one.cells:
        return ()
    charts = [
        Chart("Stages", "Seconds of all cells together; cells run side by side.", _scaled(_stages(one))),
        Chart("Slowest cells", "Wall time of a cell.", _scaled(_slowest(one))),
    ]
    points = _scaled(_points(one))
    if len(points) > 1:
        charts.append(Chart("Points", "Seconds of all cells of a point together.", points))
    return tuple(charts)


def _stages(one: Qualification) -> Iterable[Bar]:
    found: dict[str, list[float]] = {}
    for cell in one.cells:
        for stage, seconds in cell.result.stages.items():
            found.setdefault(stage, []).append(seconds)
    for stage, values in found.items():
        middle = statistics.median(values)
        yield Bar(one_line(stage), sum(values), 0, f"median {middle:.2f} s, longest {max(values):.2f} s")


def _slowest(one: Qualification) -> Iterable[Bar]:
    order = sorted(range(len(one.cells)), key=lambda number: one.cells[number].result.seconds, reverse=True)
    for number in order[:_SLOWEST]:
        cell = one.cells[number]
        stages = sorted(cell.result.stages.items(), key=lambda item: item[1], reverse=True)[:2]
        text = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages)
        yield Bar(one_line(cell.name), cell.result.seconds, 0, one_line(text), number)


def _points(one: Qualification) -> Iterable[Bar]:
    axes = varying(one.axes)
    for point in points_of(one):
        seconds = [cell.result.seconds for cell in one.cells if point_of(cell, axes) == point]
        if seconds:
            text = f"{len(seconds)} cell{'s' * (len(seconds) != 1)}, median {statistics.median(seconds):.2f} s"
            yield Bar(one_line(point_text(point)) or "without a guest", sum(seconds), 0, text)


def _scaled(bars: Iterable[Bar]) -> tuple[Bar, ...]:
    found = list(bars)
    longest = max((bar.seconds for bar in found), default=0.0) or 1.0
    return tuple(
        Bar(bar.label, bar.seconds, round(100 * bar.seconds / longest, 2), bar.text, bar.cell) for bar in found
    )
