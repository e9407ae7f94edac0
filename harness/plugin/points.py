"""The points that a test in Python runs at: those of the options, without what its markers pin."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydantic import ValidationError

from harness.plugin.options import AXES, Settings, implementation_of
from harness.run.axes import all_points
from harness.scenario.base import frozen
from harness.scenario.explain import explain
from harness.scenario.growing import ANY_STEP
from harness.scenario.machine import Machine, Needs
from harness.scenario.model import Scenario
from harness.scenario.point import CMDLINES, VIOMMUS, Point
from harness.scenario.problems import suggest
from harness.scenario.yaml_marks import Document

if TYPE_CHECKING:
    from harness.results import Implementation
    from harness.run.options import DmaModel

MACHINE: Final = "harness_machine"
POINT: Final = "harness_point"
NEEDS: Final = "harness_needs"
_PARTS: Final = {MACHINE: "machine", NEEDS: "needs"}
_DEFAULT: Final = {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}


class MarkerError(pytest.Collector.CollectError):
    """A marker cannot be meant so; pytest shows its text without a traceback."""


@dataclass(frozen=True, slots=True)
class TestPoint:
    """Where a test runs.

    Args:
        qemu: name of the QEMU build.
        kernel: the guest's kernel.
        implementation: what steps run on.
        libusdm: which C library, where one is meant.
        model: what stands where the machine has an edu.
        point: the other axes.
        words: axis to value, of the axes that tell the session's points apart.
    """

    __test__ = False

    qemu: str
    kernel: str
    implementation: Implementation
    libusdm: str
    model: DmaModel
    point: Point
    words: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def values(self) -> dict[str, str]:
        """Axis to value, of every axis that has one."""
        library = f"-{self.libusdm}" if self.implementation == "libusdm" else ""
        found = {"qemu": self.qemu, "kernel": self.kernel, "implementation": self.implementation + library}
        found = found | {"model": self.model} | self.point.values
        return {axis: found[axis] for axis in AXES if axis in found}

    def __str__(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.words.items())


def test_points(known: Settings, pinned: Mapping[str, tuple[str, ...]]) -> list[TestPoint]:
    """Every point of a test, in the order of the options.

    Args:
        known: the session's settings.
        pinned: axis to the values that a marker gives it instead.
    """
    run = known.run
    values = {
        axis: pinned.get(axis) or tuple(dict.fromkeys(one.values[axis] for one in run.points if axis in one.values))
        for axis in ("viommu", "cmdline", "hugepages", "vcpus")
    }
    points = all_points(
        values["viommu"],
        values["cmdline"],
        [int(one) for one in values["hugepages"]],
        [int(one) for one in values["vcpus"]],
    )
    chosen = [implementation_of(word) for word in pinned.get("implementation", ())]
    implementations = [one for one in chosen if one is not None] or known.implementations
    models: Any = pinned.get("model", run.models)
    every = [
        TestPoint(qemu, kernel, on, library, model, point)
        for qemu, kernel, (on, library), model, point in product(
            pinned.get("qemu", run.qemu), pinned.get("kernel", run.kernels), implementations, models, points
        )
    ]
    return named(every)


test_points.__test__ = False  # type: ignore[attr-defined]


def named(points: Sequence[TestPoint]) -> list[TestPoint]:
    """Points with the words that tell them apart; of QEMU and kernel both or none, since they are read together."""
    values = [point.values for point in points]
    differ = {axis for axis in AXES if len({one.get(axis) for one in values}) > 1}
    if differ & {"qemu", "kernel"}:
        differ |= {"qemu", "kernel"}
    return [
        replace(point, words={axis: text for axis, text in one.items() if axis in differ})
        for point, one in zip(points, values, strict=True)
    ]


def pinned_axes(node: pytest.Item | pytest.Function | Any, definition: Any = None) -> dict[str, tuple[str, ...]]:
    """What the markers ``harness_point`` of a test give its axes.

    Raises:
        MarkerError: an axis or a value is unknown; the message names the marker's place.
    """
    found: dict[str, tuple[str, ...]] = {}
    known = {"viommu": tuple(VIOMMUS), "cmdline": tuple(CMDLINES), "model": ("edu", "qat")}
    for marker in reversed(list(node.iter_markers(POINT))):
        place = marker_place(node, POINT)
        if marker.args:
            raise MarkerError(f"{place}: expected axes by name, found {marker.args[0]!r} (hint: {POINT}(qemu='10.0'))")
        for axis, value in marker.kwargs.items():
            if axis not in AXES:
                raise MarkerError(f"{place}: expected an axis, found '{axis}' (hint: {suggest(axis, AXES, 'axes')})")
            values = tuple(str(one) for one in (value if isinstance(value, list | tuple) else [value]))
            for one in values:
                good = one in known[axis] if axis in known else True
                if axis == "implementation":
                    good = implementation_of(one) is not None
                if axis in ("hugepages", "vcpus"):
                    good = one.isdigit() and (axis == "hugepages" or 1 <= int(one) <= 64)
                if not good or not values:
                    hint = f" (hint: {suggest(one, known[axis], 'values')})" if axis in known else ""
                    raise MarkerError(f"{place}: expected a value of {axis}, found '{one}'{hint}")
            found[axis] = values
    return found


def marked_machine(node: pytest.Item | Any) -> Machine:
    """The machine that the marker ``harness_machine`` of a test describes; one with an edu at 02:00.0 without it.

    Raises:
        MarkerError: it cannot be so; the message names the marker's place.
    """
    found = _marked(node, MACHINE)
    return machine_of(_DEFAULT if found is None else found, marker_place(node, MACHINE))


def marked_needs(node: pytest.Item | Any) -> dict[str, Any]:
    """What the marker ``harness_needs`` of a test says, as it would stand in a file; checked.

    Raises:
        MarkerError: it cannot be so; the message names the marker's place.
    """
    found = _marked(node, NEEDS) or {}
    try:
        Needs.model_validate(found)
    except ValidationError as error:
        raise MarkerError(_said(error, "needs", found, marker_place(node, NEEDS))) from None
    return found


def machine_of(data: Machine | Mapping[str, Any], place: str) -> Machine:
    """A machine from what a marker or a fixture gives.

    Args:
        data: the keys of ``machine`` in a scenario file.
        place: where that was said, for the message.

    Raises:
        MarkerError: it cannot be so.
    """
    if isinstance(data, Machine):
        return data
    plain = frozen(data)
    try:
        return Machine.model_validate(plain)
    except ValidationError as error:
        raise MarkerError(_said(error, "machine", plain, place)) from None


def marker_place(node: Any, name: str) -> str:
    """``file:line`` of a test's marker, or of the test where the marker stands elsewhere (a class, a module)."""
    function = inspect.unwrap(node.obj)
    file: str = os.path.relpath(node.path, node.config.invocation_params.dir)
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None:
        return file
    lines, first = inspect.getsourcelines(code)
    for number, line in enumerate(lines, first):
        if line.lstrip().startswith("def "):
            break
        if name in line:
            return f"{file}:{number}"
    return f"{file}:{first}"


def _marked(node: Any, name: str) -> Any:
    """The keys that a test's nearest marker has, as they would stand in a file; None without a marker."""
    marker = node.get_closest_marker(name)
    if marker is None:
        return None
    if marker.args:
        raise MarkerError(f"{marker_place(node, name)}: expected keys by name, found {marker.args[0]!r}")
    return frozen(marker.kwargs)


def _said(error: ValidationError, part: str, data: Any, place: str) -> str:
    """What is wrong with a part of a scenario that no file has."""
    document = Document({"title": "t", "source": "s", "machine": {}, "steps": (ANY_STEP,), part: data})
    try:
        Scenario.model_validate(document.data)
    except ValidationError as whole:
        found = explain(document, Path(place), whole)
        return "; ".join(f"{place}: {one.message}" + (f" (hint: {one.hint})" if one.hint else "") for one in found)
    return f"{place}: {error.errors()[0]['msg']}"
