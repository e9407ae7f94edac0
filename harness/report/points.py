"""Points of a matrix in words, and the axes in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.qualified.records import AXES, NotRun, Qualification, QualifiedCell
from harness.report.text import one_line

Point = tuple[tuple[str, str], ...]
"""Axis and value of each axis, in the order of :data:`AXES`."""

_VIOMMUS: Final = {
    "none": "no vIOMMU",
    "intel": "intel-iommu",
    "intel-39": "intel-iommu of 39 bits",
    "intel-scalable": "intel-iommu in scalable mode",
    "intel-scalable-39": "intel-iommu in scalable mode of 39 bits",
    "virtio": "virtio-iommu",
    "virtio-39": "virtio-iommu of 39 bits",
    "amd": "amd-iommu",
}
_CMDLINES: Final = {
    "default": "the default command line",
    "strict": "iommu.strict=1",
    "lazy": "iommu.strict=0",
    "pt": "iommu.passthrough=1",
}
TITLES: Final = {
    "qemu": "QEMU",
    "kernel": "Kernel",
    "viommu": "vIOMMU",
    "cmdline": "Command line",
    "implementation": "Implementation",
    "model": "Device model",
    "hugepages": "Hugepages",
    "vcpus": "vCPUs",
}
"""Axes as a heading has them."""


@dataclass(frozen=True, slots=True)
class Reason:
    """What was not run for one reason.

    Args:
        text: the reason, as one line.
        points: how many points it stands for.
        entries: what it says that of.
    """

    text: str
    points: int
    entries: tuple[NotRun, ...]


def by_reason(entries: Iterable[NotRun]) -> list[Reason]:
    """What was not run by its reason, which may stand for hundreds of points; the most frequent first."""
    found: dict[str, list[NotRun]] = {}
    for entry in entries:
        found.setdefault(one_line(entry.reason), []).append(entry)
    reasons = [Reason(text, sum(one.points for one in of), tuple(of)) for text, of in found.items()]
    return sorted(reasons, key=lambda reason: -reason.points)


def as_point(values: Mapping[str, str], axes: Sequence[str] = AXES) -> Point:
    """The values of some axes, in order; axes without a value are left out."""
    return tuple((axis, values[axis]) for axis in axes if axis in values)


def varying(axes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The axes that have more than one value."""
    return tuple(axis for axis in AXES if len(axes.get(axis, ())) > 1)


def value_text(axis: str, value: str) -> str:
    """``QEMU 11.1``, ``kernel 6.12``, ``virtio-iommu``, ``4 vCPUs``."""
    match axis:
        case "qemu":
            return f"QEMU {value}"
        case "kernel":
            return f"kernel {value}"
        case "viommu":
            return _VIOMMUS.get(value, value)
        case "cmdline":
            return _CMDLINES.get(value, value)
        case "model":
            return f"model {value}"
        case "hugepages":
            return f"{value} hugepages"
        case "vcpus":
            return f"{value} vCPU{'s' * (value != '1')}"
        case _:
            return value


def point_text(point: Point) -> str:
    """``QEMU 11.1, kernel 6.12, virtio-iommu``; empty for the point of no axis."""
    return ", ".join(value_text(axis, value) for axis, value in point)


def points_of(one: Qualification) -> tuple[Point, ...]:
    """The points that have cells or are named by what was not run, in the matrix's order, by the axes that differ.

    A cell may lack an axis (a scenario without a guest knows no kernel); its point is then a shorter one.
    """
    axes = varying(one.axes)
    found: dict[Point, None] = {}
    # What was not run has a point of its own only where it names a value of each axis; else it stands for several.
    alone = [item for item in one.not_run if set(axes) <= set(item.point)]
    items: tuple[QualifiedCell | NotRun, ...] = (*one.cells, *alone)
    for item in items:
        found.setdefault(as_point(item.point, axes))
    return tuple(sorted(found, key=lambda point: _place(point, one.axes)))


def point_of(item: QualifiedCell | NotRun, axes: Iterable[str]) -> Point:
    """An item's point by some axes."""
    return as_point(item.point, tuple(axes))


def _place(point: Point, axes: Mapping[str, Sequence[str]]) -> tuple[tuple[int, int], ...]:
    """Sort key: the positions of the values; points of fewer axes come last."""
    values = dict(point)
    return tuple(
        (0, tuple(axes[axis]).index(values[axis])) if values.get(axis) in axes.get(axis, ()) else (1, 0)
        for axis in varying(axes)
    )
