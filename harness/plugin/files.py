"""Scenario files, and matrices of them, as test items: one for each cell."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.plugin.failure import RESULT, FilePlaces, Shown, failure_text, properties
from harness.plugin.folder import note_failed_setup
from harness.plugin.options import rerun_line, value_of
from harness.plugin.state import State, say, state_of
from harness.report.json_report import write_cell
from harness.results import CellResult, Outcome
from harness.run.cell import run_cell
from harness.run.cells import Cell, expand, unmet
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.scenario import BareScenario, ScenarioError

Known = Callable[[CellResult], tuple[str, str]]


class CellFailed(Exception):
    """A cell did not pass.

    Attributes:
        shown: its result.
    """

    def __init__(self, shown: Shown) -> None:
        super().__init__(failure_text(shown))
        self.shown = shown


class ScenarioFile(pytest.File):
    """A scenario file: an item for each point of the options."""

    def collect(self) -> Iterable[pytest.Item]:
        """Load and check the file, and make its items; nothing is started."""
        state = state_of(self.config)
        path = Path(shown_path(self.path, self.config))
        for name, cell in file_cells(state, path):
            yield ScenarioItem.from_parent(
                self, name=name, cell=cell, values=cell_values(cell), options=state.settings.run
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What is wrong with the file, without a traceback of the harness."""
        return told(excinfo.value) or super().repr_failure(excinfo)


class ScenarioItem(pytest.Item):
    """One cell.

    Args:
        cell: the cell.
        values: axis to value.
        options: how it is run.
        known: says of a result that is not good why it is known, and what a reader should know beside.
    """

    def __init__(
        self,
        *,
        cell: Cell,
        values: Mapping[str, str],
        options: RunOptions,
        known: Known | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self._cell = cell
        self._values = values
        self._options = options
        self._known = known
        self._resources: Resources | None = None

    def setup(self) -> None:
        """Find what the cell needs; a cell that cannot run is skipped."""
        try:
            self._cell, self._resources = state_of(self.config).prepare(self._cell, self._options)
        except HarnessError as error:
            note_failed_setup(self.config, self._cell, self.nodeid, error)
            pytest.fail(told(error) or error.message, pytrace=False)
        reason = unmet(self._cell, self._resources)
        if reason:
            pytest.skip(reason)

    def runtest(self) -> None:
        """Run the cell."""
        assert self._resources is not None  # noqa: S101 - setup was called
        state = state_of(self.config)
        folder = state.new_folder(self.nodeid)
        result = run_cell(
            *(self._cell, self._resources, self._options, folder, lambda stage: None, say),
            before_end=self._before_end if value_of(self.config, "shell") else None,
        )
        shown = self._shown_result(result)
        self.stash[RESULT] = shown
        self.user_properties.extend(properties(shown))
        if result.folder:
            write_cell(result, folder)
        if result.outcome is Outcome.SKIP:
            pytest.skip(result.message)
        if result.outcome is not Outcome.PASS:
            why, note = self._known(result) if self._known is not None else ("", "")
            if why:
                pytest.xfail(f"known: {why}")
            raise CellFailed(replace(shown, note=note))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The judge's reasons with their places, the evidence and the commands to run it again."""
        if isinstance(excinfo.value, CellFailed):
            return told_failure(excinfo, excinfo.value.shown)
        return told(excinfo.value) or super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The file and the item's name."""
        return self.path, 0, self.name

    def _before_end(self, result: CellResult, sessions: Any) -> None:
        from harness.plugin.shell import open_on_failure

        if result.outcome is not Outcome.PASS:
            open_on_failure(self, sessions[-1], failure_text(self._shown_result(result)))

    def _shown_result(self, result: CellResult) -> Shown:
        file = Path(self._cell.scenario.file)
        return Shown(
            result,
            FilePlaces(file, shown_path(file, self.config)),
            rerun_line(self.config, self.nodeid),
            self._values,
        )


def told_failure(excinfo: pytest.ExceptionInfo[BaseException], shown: Shown) -> Any:
    """A failure as pytest prints it: the text alone, whose first line is also that of the summary and of JUnit XML."""
    told: Any = excinfo.getrepr(style="value")
    first = failure_text(shown).partition("\n")[0]
    if getattr(told, "reprcrash", None) is not None:
        told.reprcrash.message = first
    return told


def file_cells(state: State, path: Path) -> Iterator[tuple[str, Cell]]:
    """The cells of a file at the points of the options, each with the name of its item.

    Raises:
        ScenarioError: the file is wrong.
    """
    cells: list[Cell] = []
    for implementation, library in state.settings.implementations:
        options = replace(state.settings.run, paths=(path,), implementation=implementation)
        options = replace(options, libusdm=library) if library else options
        cells += expand(options)
        if isinstance(cells[0].scenario, BareScenario):
            break  # it runs nothing but QEMU
    values = [cell_values(cell) for cell in cells]
    several = {axis for one in values for axis in one if len({v.get(axis) for v in values}) > 1}
    if several & {"qemu", "kernel"}:
        several |= {"qemu", "kernel"}
    for cell, one in zip(cells, values, strict=True):
        words = ", ".join(f"{axis} {text}" for axis, text in one.items() if axis in several)
        yield f"[{words}]" if words else path.stem, cell


def cell_values(cell: Cell) -> dict[str, str]:
    """Axis to value, of every axis that a cell has one of."""
    if isinstance(cell.scenario, BareScenario):
        return {"qemu": cell.qemu}
    library = f"-{cell.libusdm}" if cell.libusdm and cell.implementation == "libusdm" else ""
    point = cell.point.values
    found = {"qemu": cell.qemu, "kernel": cell.kernel}
    found |= {axis: point[axis] for axis in ("viommu", "cmdline") if axis in point}
    found |= {"implementation": cell.implementation + library, "model": cell.model}
    return found | {axis: point[axis] for axis in ("hugepages", "vcpus") if axis in point}


def shown_path(path: Path, config: pytest.Config) -> str:
    """A path as it is printed: from where pytest was started, if it is below."""
    start = config.invocation_params.dir
    absolute = start / path
    return os.path.relpath(absolute, start) if absolute.is_relative_to(start) else str(absolute)


def told(error: BaseException) -> str | None:
    """An error of the harness as text: each problem with its place, no traceback."""
    if isinstance(error, ScenarioError):
        return "\n".join(map(str, error.problems))
    if isinstance(error, HarnessError):
        return error.message + (f"\nhint: {error.hint}" if error.hint else "")
    return str(error) if isinstance(error, pytest.UsageError) else None
