"""A matrix made into cells: each scenario at each point where it means something; and why not at the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from harness.errors import ConfigurationError
from harness.image.library import DEFAULT as DEFAULT_LIBRARY
from harness.qualified.fits import fits_pattern, fits_point
from harness.qualified.records import AXES, NotRun
from harness.results import Implementation
from harness.run.axes import cell_name
from harness.run.cells import Cell, unmet
from harness.run.models import has_edu, with_model
from harness.run.options import DmaModel, RunOptions
from harness.run.resources import Resources
from harness.scenario import BareScenario, Machine, Problem, Scenario, ScenarioError, load_scenario
from harness.scenario.combine import combine
from harness.scenario.matrix import DEFAULTS, Expectation, Matrix, Selection, impossible
from harness.scenario.point import SAME_CMDLINE, VIOMMUS, NotApplicable, Point, at_point, machine_at

_LIBUSDM: Final = "libusdm-"


@dataclass(frozen=True, slots=True)
class Item:
    """A cell of a matrix.

    Args:
        cell: the cell.
        point: axis to value, of the axes that the matrix names.
        labels: axis to value, of every axis.
        expectation: what it expects in place of what its file says, where that differs.
    """

    cell: Cell
    point: Mapping[str, str]
    labels: Mapping[str, str]
    expectation: Expectation | None = None


@dataclass(slots=True)
class _Reasons:
    """Why scenarios are not run, one entry for all points with the same reason."""

    points: dict[tuple[str, str], list[Mapping[str, str]]] = field(default_factory=dict)

    def add(self, scenario: str, reason: str, point: Mapping[str, str]) -> None:
        """Note that a scenario is not run on a point."""
        found = self.points.setdefault((scenario, reason), [])
        if point not in found:
            found.append(point)

    def records(self) -> tuple[NotRun, ...]:
        """What is kept of them."""
        return tuple(
            NotRun(scenario=scenario, point=_common(points), reason=reason, points=len(points))
            for (scenario, reason), points in self.points.items()
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a matrix comes to.

    Args:
        items: the cells, in the order of the matrix.
        not_run: what it names beside them, and why that is not run.
        notes: what of it did nothing.
    """

    items: tuple[Item, ...]
    not_run: tuple[NotRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> int:
        """How many points there are."""
        return len({tuple(item.point.items()) for item in self.items})


class _Planner:
    def __init__(self, matrix: Matrix, options: RunOptions) -> None:
        self._matrix = matrix
        self._options = options
        self._axes = tuple(matrix.axes)
        self._loaded: dict[str, Scenario | BareScenario] = {}
        self._problems: list[Problem] = []
        self._used: set[int] = set()
        self._items: dict[str, Item] = {}
        self._not_run = _Reasons()

    def plan(self) -> Plan:
        for selection in self._matrix.selections:
            points = combine(selection.axes, selection.combine, self._allowed(selection))
            for name in self._matrix.files:
                if fits_pattern(selection.patterns, name):
                    for point in points:
                        self._add(name, point)
        if self._problems:
            raise ScenarioError(dict.fromkeys(self._problems))
        if not self._items:
            raise ConfigurationError(
                f"{self._matrix.file} comes to no cell: everything that it names is excluded, or means nothing there",
                hint="'harness qualify MATRIX --list' says why",
            )
        exclusions = [one.where.line for one in self._matrix.exclusions if id(one) not in self._used]
        expectations = [one.where.line for one in self._matrix.expectations if id(one) not in self._used]
        notes = [
            f"the entry in line {line} of {self._matrix.file.name} fits no cell"
            for line in (*exclusions, *expectations)
        ]
        return Plan(tuple(self._items.values()), self._not_run.records(), tuple(notes))

    def _allowed(self, selection: Selection) -> Any:
        """Whether a point may be, for whichever scenario; why not is noted."""
        of = ", ".join(selection.patterns)

        def allowed(point: Mapping[str, str]) -> bool:
            for one in self._matrix.exclusions:
                if one.where.patterns == ("*",) and fits_point(one.where.when, point):
                    self._used.add(id(one))
                    self._not_run.add("*", one.why, {axis: point[axis] for axis in one.where.when})
                    return False
            reason = impossible({**DEFAULTS, **point})
            if reason is not None:
                # Of few points that were chosen out of many it means nothing how many of the many cannot be.
                self._not_run.add(of, reason, point if selection.combine == "all" else {})
            return reason is None

        return allowed

    def _load(self, name: str) -> Scenario | BareScenario | None:
        if name not in self._loaded:
            try:
                self._loaded[name] = load_scenario(self._matrix.files[name], self._matrix.root)
            except ScenarioError as error:
                self._problems += error.problems
                return None
        return self._loaded[name]

    def _add(self, name: str, point: Mapping[str, str]) -> None:
        """Make the cell of a scenario at a point, unless there is one that is the same."""
        scenario = self._load(name)
        if scenario is None:
            return
        at = {**DEFAULTS, **point}
        if isinstance(scenario, BareScenario):
            # It has no guest, so of all axes only the build means anything to it.
            labels = {"qemu": at["qemu"]}
            if not self._excluded(name, labels):
                self._keep(Cell(scenario, at["qemu"], "", name, more=self._options.rerun_words), labels, None)
            return
        if not has_edu(scenario):
            at["model"] = DEFAULTS["model"]
        where = Point(
            viommu=at.get("viommu"),
            cmdline=at.get("cmdline"),
            hugepages=int(at["hugepages"]) if "hugepages" in at else None,
            vcpus=int(at["vcpus"]) if "vcpus" in at else None,
        )
        try:
            self._add_guest(scenario, where, at)
        except NotApplicable as error:
            self._not_run.add(name, error.reason, {axis: at[axis] for axis in self._axes if axis in at})

    def _add_guest(self, scenario: Scenario, where: Point, at: Mapping[str, str]) -> None:
        # What the axes that the point does not name are is known when the machine is; rules do not change that.
        labels = self._labels(scenario, where, at)
        if self._excluded(scenario.id, labels):
            return
        expectation = next((one for one in self._matrix.expectations if one.where.fits(scenario.id, labels)), None)
        rule = None
        if expectation is not None:
            self._used.add(id(expectation))
            rule = expectation.rule
        try:
            there = at_point(scenario, where, rule)
        except ConfigurationError as error:
            assert expectation is not None  # noqa: S101 - the point's values have been checked when the matrix was read
            line = expectation.where.line
            self._problems.append(Problem(self._matrix.file, line, 1, error.message, error.hint))
            return
        library = at["implementation"].removeprefix(_LIBUSDM) if _LIBUSDM in at["implementation"] else ""
        cell = Cell(
            with_model(there, cast(DmaModel, at["model"])),
            at["qemu"],
            at["kernel"],
            scenario.id,
            usdm=self._options.usdm,
            fresh_boot=self._options.fresh_boot,
            implementation=cast(Implementation, "libusdm" if library else at["implementation"]),
            model=cast(DmaModel, at["model"]),
            point=where,
            more=self._options.rerun_words,
        )
        if cell.oracle == "libusdm":
            cell = replace(cell, libusdm=library or DEFAULT_LIBRARY)
        self._keep(cell, labels, expectation)

    def _labels(self, scenario: Scenario, where: Point, at: Mapping[str, str]) -> dict[str, str]:
        """Every axis of a scenario at a point.

        Raises:
            NotApplicable: the machine cannot be so.
        """
        found = {**at, **machine_labels(machine_at(scenario.machine, where))}
        return {axis: found[axis] for axis in AXES}

    def _excluded(self, scenario: str, labels: Mapping[str, str]) -> bool:
        for one in self._matrix.exclusions:
            if one.where.fits(scenario, labels):
                self._used.add(id(one))
                self._not_run.add(
                    ", ".join(one.where.patterns), one.why, {axis: labels[axis] for axis in one.where.when}
                )
                return True
        return False

    def _keep(self, cell: Cell, labels: Mapping[str, str], expectation: Expectation | None) -> None:
        point = {axis: labels[axis] for axis in self._axes if axis in labels}
        name = cell_name(cell.scenario.id, point)
        self._items.setdefault(name, Item(replace(cell, name=name), point, labels, expectation))


def machine_labels(machine: Machine) -> dict[str, str]:
    """What a machine is on the axes that are about machines."""
    viommu: str = machine.iommu
    viommu += "-scalable" if machine.scalable else ""
    viommu += f"-{machine.aw_bits}" if machine.aw_bits != VIOMMUS["intel"].aw_bits and machine.iommu != "none" else ""
    words = machine.kernel_args
    pages = [word.partition("=")[2] for word in words if word.startswith("hugepages=")]
    return {
        "viommu": viommu,
        "cmdline": next(filter(None, (SAME_CMDLINE.get(word) for word in words)), "default"),
        "hugepages": pages[-1] if pages else "0",
        "vcpus": str(machine.cpus),
    }


def make_plan(matrix: Matrix, options: RunOptions) -> Plan:
    """The cells of a matrix.

    Args:
        matrix: the matrix.
        options: another ``usdm`` under test, and how guests are started.

    Raises:
        ScenarioError: scenarios that are wrong, or expectations that do not fit them; all of them.
        ConfigurationError: there is no cell at all.
    """
    return _Planner(matrix, options).plan()


def without_unmet(plan: Plan, resources: Resources) -> Plan:
    """A plan without the cells that cannot run on what there is: other versions, other options of the kernel.

    Args:
        plan: the plan.
        resources: builds and images.

    Raises:
        ConfigurationError: no cell is left.
    """
    reasons, items = _Reasons(), []
    for item in plan.items:
        reason = unmet(item.cell, resources, advise=False)
        if reason is None:
            items.append(item)
        else:
            reasons.add(item.cell.scenario.id, reason, item.point)
    if not items:
        first = next(iter(reasons.points))[1]
        raise ConfigurationError(f"no cell of the matrix can run: {first}", hint="'--list' says why of each")
    return replace(plan, items=tuple(items), not_run=plan.not_run + reasons.records())


def _common(points: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What points have in common."""
    first, *rest = points
    return {axis: value for axis, value in first.items() if all(other.get(axis) == value for other in rest)}


def chosen(plan: Plan, text: str | None, name: str | None) -> list[int]:
    """Positions of the cells that are to be run.

    Args:
        plan: the plan.
        text: what their names must have in them; None for all.
        name: the name of the only one; None for all.

    Raises:
        ConfigurationError: there is none.
    """
    names = [item.cell.name for item in plan.items]
    if name is not None:
        if name not in names:
            near = [one for one in names if name in one]
            if len(near) == 1:
                return [names.index(near[0])]
            hint = "'--list' shows the names" if not near else "did you mean one of: " + "; ".join(near[:5])
            raise ConfigurationError(f"--cell: the matrix has no cell '{name}'", hint=hint)
        return [names.index(name)]
    found = [index for index, one in enumerate(names) if text is None or text in one]
    if not found:
        raise ConfigurationError(f"--filter: no cell has '{text}' in its name", hint="'--list' shows the names")
    return found
