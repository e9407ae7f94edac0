"""Figures: what was measured, with its unit and its target, as a table and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass
class Figure:
    """One quantity and its measured values.

    Args:
        name: what was measured.
        unit: ``s``, ``MB``, ``/min``, ``/s`` or ``x`` (a ratio).
        target: the bound that the project set itself, or None.
        at_least: whether the target is a lower bound.
    """

    name: str
    unit: str
    target: float | None = None
    at_least: bool = False
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the values."""
        return statistics.median(self.values)

    @property
    def met(self) -> str:
        """``yes`` or ``no`` beside a target, else nothing."""
        if self.target is None:
            return ""
        good = self.median >= self.target if self.at_least else self.median <= self.target
        return "yes" if good else "no"

    def row(self) -> str:
        """A row of the table."""
        digits = 3 if self.unit == "s" else 1
        numbers = [f"{value:.{digits}f}" for value in (self.median, min(self.values), max(self.values))]
        bound = "" if self.target is None else f"{'>=' if self.at_least else '<='} {self.target:g}"
        return f"| {self.name} | {' | '.join(numbers)} | {self.unit} | {len(self.values)} | {bound} | {self.met} |"


HEAD = "| figure | median | lowest | highest | unit | runs | target | met |\n|---|---|---|---|---|---|---|---|"


class Figures:
    """All figures of one bench, in the order in which they first appear."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def add(self, figure: Figure, value: float) -> None:
        """Add a value to a figure."""
        self._figures.setdefault(figure.name, figure).values.append(value)

    def median(self, name: str) -> float | None:
        """The median of a figure, None when it was not taken."""
        return self._figures[name].median if name in self._figures else None

    def table(self) -> str:
        """A Markdown table."""
        return "\n".join([HEAD, *(figure.row() for figure in self._figures.values())])

    def data(self) -> dict[str, object]:
        """For JSON: name to unit, target and all values in the order in which they were taken."""
        return {
            figure.name: {
                "unit": figure.unit,
                "target": figure.target,
                "median": figure.median,
                "values": figure.values,
            }
            for figure in self._figures.values()
        }
