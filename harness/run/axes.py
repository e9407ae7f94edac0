"""Points of a matrix from the values of its axes, and how cells and command lines name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from harness.scenario.point import Point


def all_points(
    viommus: Sequence[str] = (),
    cmdlines: Sequence[str] = (),
    hugepages: Sequence[int] = (),
    vcpus: Sequence[int] = (),
) -> tuple[Point, ...]:
    """Every combination of the values, each once; an axis without any is as the scenario has it."""
    axes = [dict.fromkeys(values) or {None: None} for values in (viommus, cmdlines, hugepages, vcpus)]
    return tuple(Point(*values) for values in product(*axes))  # type: ignore[arg-type]


def point_words(point: Point) -> list[str]:
    """The options that give a point, for a command line."""
    return [word for axis, value in point.values.items() for word in (f"--{axis}", value)]


def cell_name(scenario: str, point: Mapping[str, str]) -> str:
    """What a cell is called.

    Args:
        scenario: the scenario's id.
        point: axis to value, of the axes that are worth a word, in the order in which they are written.
    """
    words = ", ".join(f"{axis} {value}" for axis, value in point.items())
    return f"{scenario} [{words}]" if words else scenario


def differing(points: Sequence[Point]) -> list[str]:
    """The axes that have more than one value, or a value in one point and none in another."""
    axes = dict.fromkeys(axis for point in points for axis in point.values)
    return [axis for axis in axes if len({point.values.get(axis) for point in points}) > 1]


def folder_name(name: str) -> str:
    """A cell's name as the name of a folder, without slashes."""
    return name.replace("/", ".").replace(" ", "-").replace("[", "").replace("]", "").replace(",", "")
