"""A qualification as plain data: which cells there were, what each came to, and what was not run.

A run of ``harness run`` is one too, with the axes that its cells differ in (:func:`from_run`), so that reports read one
kind of thing.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from datetime import date
from enum import StrEnum
from typing import Final

from pydantic import Field

from harness.results import CellResult, Outcome, Record, RunResult

AXES: Final = ("qemu", "kernel", "viommu", "cmdline", "implementation", "model", "hugepages", "vcpus")
"""The axes of a matrix, in the order in which a point is written."""


class Standing(StrEnum):
    """What a cell means for a release."""

    PASS = "pass"  # noqa: S105 - not a password
    KNOWN = "known"
    """It failed, as an entry of the known failures says that it does."""
    FAIL = "fail"
    ERROR = "error"
    SKIP = "skip"


class KnownFailure(Record):
    """An entry of the file of known failures.

    Args:
        scenario: id of the scenario, or a pattern as a shell has them (``dma/*``).
        when: values of axes, any of which must be the cell's; no axis is every point.
        signature: regular expression that must be found in every check that failed, of an error in its message.
        failure_class: the class of the error that is known; empty for a failed expectation.
        reason: why it fails.
        link: where that is followed up.
        until: the last day on which it counts.
        place: ``file:line`` of the entry.
    """

    scenario: str
    when: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    signature: str
    failure_class: str = ""
    reason: str
    link: str
    until: date
    place: str = ""


class QualifiedCell(Record):
    """One scenario on one point, and everything that became of it.

    Args:
        name: the scenario's id and the point: ``dma/unmapped_read [qemu 11.1, kernel 6.12]``; unique.
        scenario: the scenario's id.
        point: axis to value, of every axis of the matrix that the cell has.
        attempts: its results, oldest first; more than one where infrastructure failed, or where it was asked for. A
            failed expectation counts, whatever came of it later; else the last one does.
        fingerprint: hash over everything that the result depends on; another one means that it must be run again.
        known: the entry that its failure matches, where it does.
        note: what a reader should know: why a known failure does not excuse it, why its expectations differ here.
    """

    name: str
    scenario: str
    point: dict[str, str] = Field(default_factory=dict)
    attempts: tuple[CellResult, ...] = Field(min_length=1)
    fingerprint: str = ""
    known: KnownFailure | None = None
    note: str = ""

    @property
    def result(self) -> CellResult:
        """The result that counts."""
        return counting(self.attempts)

    @property
    def standing(self) -> Standing:
        """What it means for the release."""
        if self.known is not None and self.result.outcome in (Outcome.FAIL, Outcome.ERROR):
            return Standing.KNOWN
        return Standing(str(self.result.outcome))


def counting(attempts: Sequence[CellResult]) -> CellResult:
    """The one of several attempts at the same thing that counts: the last failed expectation, else the last.

    Args:
        attempts: oldest first, at least one.
    """
    return next((one for one in reversed(attempts) if one.outcome is Outcome.FAIL), attempts[-1])


class NotRun(Record):
    """A scenario that was not run on a point, and why; or several for one reason.

    Args:
        scenario: id of the scenario, or the patterns of all that are meant.
        point: axis to value; of several points what they have in common.
        reason: one line.
        points: how many points it stands for, >= 1.
    """

    scenario: str
    point: dict[str, str] = Field(default_factory=dict)
    reason: str
    points: int = 1


class Slower(Record):
    """A cell that takes longer than the ratio allows.

    Args:
        name: the cell.
        before: seconds of its steps in the earlier qualification.
        now: seconds now.
    """

    name: str
    before: float
    now: float


class Comparison(Record):
    """What changed since an earlier qualification; names of cells.

    Args:
        before: when the earlier one was started, ISO 8601.
        folder: its folder.
        newly_failing: passed (or were known) before, and do not now.
        newly_passing: the other way round.
        slower: those that take longer than ``ratio`` allows.
        ratio: how many times as long a cell may take.
        gone: run before, and not now.
        new: run now, and not before.
    """

    before: str
    folder: str = ""
    newly_failing: tuple[str, ...] = ()
    newly_passing: tuple[str, ...] = ()
    slower: tuple[Slower, ...] = ()
    ratio: float = 1.5
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether there is anything to tell."""
        return any((self.newly_failing, self.newly_passing, self.slower, self.gone, self.new))


class Qualification(Record):
    """A whole qualification.

    Args:
        title: what the matrix calls itself; of a run of ``harness run``: empty.
        matrix: the matrix file, empty for a run.
        axes: axis to the values that cells have, in the matrix's order.
        started: ISO 8601 time in UTC, of the first start where it was resumed.
        argv: the command line, of the last start where it was resumed.
        host: facts about the host by name.
        cells: in the order of the matrix.
        not_run: what the matrix names and no cell was made of, or was skipped.
        planned: how many cells there are to run; fewer are done after an interruption.
        seconds: time that cells were being run, in all sessions.
        jobs: how many ran at once.
        executor: where they ran: ``local``, or ``dask`` with the scheduler's address.
        stale: known failures that no cell showed although some could have.
        notes: what happened beside: the clock jumped, a worker was lost, sessions that were interrupted.
        comparison: with an earlier qualification, where one was asked for.
        slower: how many times as long a cell's steps may take, by the matrix.
        interrupted: it ended early, and nothing says how many cells there were to be; only of a run.
    """

    title: str = ""
    matrix: str = ""
    axes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    started: str
    argv: tuple[str, ...] = ()
    host: dict[str, str] = Field(default_factory=dict)
    cells: tuple[QualifiedCell, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    planned: int = 0
    seconds: float = 0.0
    jobs: int = 1
    executor: str = "local"
    stale: tuple[KnownFailure, ...] = ()
    notes: tuple[str, ...] = ()
    comparison: Comparison | None = None
    slower: float = 1.5
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every cell has been run."""
        return not self.interrupted and len(self.cells) >= self.planned


def from_run(run: RunResult) -> Qualification:
    """A run of ``harness run`` as a qualification: what was skipped is not run, a cell's point is what it ran on."""
    cells = [
        QualifiedCell(
            name=cell.scenario, scenario=cell.scenario.partition(" [")[0], point=_point(cell), attempts=(cell,)
        )
        for cell in run.cells
    ]
    return Qualification(
        axes=_axes(cells),
        started=run.started,
        argv=run.argv,
        host=run.host,
        cells=tuple(one for one in cells if one.standing is not Standing.SKIP),
        not_run=tuple(
            NotRun(scenario=one.scenario, point=one.point, reason=one.result.message)
            for one in cells
            if one.standing is Standing.SKIP
        ),
        planned=sum(one.standing is not Standing.SKIP for one in cells),
        seconds=run.seconds,
        jobs=run.jobs,
        notes=("it was interrupted",) if run.interrupted else (),
        interrupted=run.interrupted,
    )


def _point(cell: CellResult) -> dict[str, str]:
    """What a cell ran on: by the names that its own command line has, else by what its result says ran."""
    found = {}
    if cell.versions is not None:
        found = {"qemu": cell.versions.qemu, "kernel": cell.versions.kernel, "implementation": cell.implementation}
    try:
        words = shlex.split(cell.rerun)
    except ValueError:  # a result of another version may hold anything
        words = []
    named = {word[2:]: value for word, value in itertools.pairwise(words) if word.startswith("--")}
    if "libusdm" in named and named.get("implementation") == "libusdm":
        named["implementation"] = f"libusdm-{named['libusdm']}"
    found |= {axis: named[axis] for axis in AXES if axis in named}
    return {axis: found[axis] for axis in AXES if found.get(axis)}


def _axes(cells: Iterable[QualifiedCell]) -> dict[str, tuple[str, ...]]:
    """The values of each axis, in the order in which they come."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for axis, value in cell.point.items():
            found.setdefault(axis, {})[value] = None
    return {axis: tuple(values) for axis, values in found.items()}
