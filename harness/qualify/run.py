"""A qualification from its matrix to its end: planned, resumed, run, kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from harness.errors import ConfigurationError, InfrastructureError
from harness.qualified.compare import compare
from harness.qualified.database import Last, Planned, Store, has_store, refuse_lost
from harness.qualified.records import Qualification
from harness.qualified.store import read
from harness.qualify.clock import Clock
from harness.qualify.executor import Executor, Work, make_executor
from harness.qualify.fingerprint import fingerprint, made_of
from harness.qualify.keep import Keeper
from harness.qualify.order import Group, estimate, groups, order
from harness.qualify.place import held, last_folder, new_folder, same_file
from harness.qualify.plan import Item, Plan, chosen, make_plan, without_unmet
from harness.qualify.rebuild import rebuild
from harness.qualify.resume import Left, what_is_left, with_asked
from harness.report.load import load
from harness.results import Outcome, Progress
from harness.run.cells import prepare_for
from harness.run.durations import Durations
from harness.run.jobs import default_jobs
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.run.schedule import SerialProgress, host_facts
from harness.scenario import Scenario
from harness.scenario.matrix import Matrix
from harness.scenario.matrix_load import load_matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class QualifyOptions:
    """The choices behind ``harness qualify``.

    Args:
        matrix: the matrix file.
        run: how cells are run: jobs, accelerator, another ``usdm``, what may be fetched. Its deadlines are not
            used.
        timeout: seconds for the steps of a scenario that names none; None is as the matrix says.
        boot_timeout: seconds for a guest to become ready; None likewise.
        out: the qualification's folder; None makes one below the state folder, or with ``resume`` takes the newest.
        resume: go on with what is there.
        rebuild: make the results file anew from the folders of the cells first.
        since: the folder of an earlier qualification or run to compare with.
        text: only cells with this text in their names are run.
        cell: only the cell of this name is run, also when it is done.
        executor: where cells run.
        scheduler: the address of the executor's scheduler, where it has one.
    """

    matrix: Path
    run: RunOptions
    timeout: float | None = None
    boot_timeout: float | None = None
    out: Path | None = None
    resume: bool = False
    rebuild: bool = False
    since: Path | None = None
    text: str | None = None
    cell: str | None = None
    executor: str = "local"
    scheduler: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A matrix with everything that its cells need.

    Args:
        matrix: the matrix.
        plan: its cells; those that cannot run are among what is not run.
        options: how cells are run, with the matrix's deadlines.
        resources: builds, images, payload.
        planned: the cells as they are kept.
        wanted: positions of those that were asked for.
    """

    matrix: Matrix
    plan: Plan
    options: RunOptions
    resources: Resources
    planned: tuple[Planned, ...]
    wanted: tuple[int, ...]

    def seconds(self, indices: Sequence[int], jobs: int) -> float:
        """About how long some cells take."""
        return estimate(self.plan.items, self.grouped(indices), self.options.start, Durations().load(), jobs)

    def grouped(self, indices: Sequence[int]) -> dict[Group, list[int]]:
        """Some cells by the templates of their guests."""
        return groups(self.plan.items, indices, self.resources)


@dataclass(frozen=True, slots=True)
class Done:
    """How ``harness qualify`` ended.

    Args:
        folder: the qualification's folder.
        qualification: what is in it.
        asked: names of the cells that were asked for and not skipped; None for all.
        interrupted: Ctrl-C ended it.
        left: cells that did not stop in time.
    """

    folder: Path
    qualification: Qualification
    asked: tuple[str, ...] | None = None
    interrupted: bool = False
    left: tuple[str, ...] = field(default=())

    @property
    def judged(self) -> Qualification:
        """What the exit code is about: the cells that were asked for."""
        if self.asked is None:
            return self.qualification
        asked = set(self.asked)
        cells = tuple(cell for cell in self.qualification.cells if cell.name in asked)
        return self.qualification.model_copy(update={"cells": cells, "planned": len(asked)})


def prepare_matrix(options: QualifyOptions, progress: Progress) -> Prepared:
    """Read a matrix, make its cells, and find what they need.

    Raises:
        ScenarioError, ConfigurationError: what was asked for is wrong.
        InfrastructureError: something is missing.
    """
    matrix = load_matrix(options.matrix)
    limits = matrix.limits
    run = replace(
        options.run,
        timeout=options.timeout or limits.timeout,
        boot_timeout=options.boot_timeout or limits.boot_timeout,
        auto_kernel=False,
    )
    plan = make_plan(matrix, run)
    _, resources = prepare_for([item.cell for item in plan.items], run, progress.message)
    plan = without_unmet(plan, resources)
    return Prepared(
        matrix=matrix,
        plan=plan,
        options=run,
        resources=resources,
        planned=tuple(_planned(item, resources, run) for item in plan.items),
        wanted=tuple(chosen(plan, options.text, options.cell)),
    )


def _planned(item: Item, resources: Resources, options: RunOptions) -> Planned:
    parts = made_of(item, resources, options)
    return Planned(
        name=item.cell.name,
        scenario=item.cell.scenario.id,
        point=item.point,
        labels=item.labels,
        fingerprint=fingerprint(parts),
        made_of=parts,
        note="" if item.expectation is None else f"other expectations here: {item.expectation.rule.why}",
    )


def qualify(options: QualifyOptions, progress: Progress) -> Done:
    """Run what a matrix names and what is not done yet.

    Ctrl-C ends the guests at once; what was done until then is kept.

    Raises:
        ScenarioError, ConfigurationError: nothing was run because what was asked for is wrong.
        InfrastructureError: something is missing, or the folder cannot be written any more. What was kept stays.
    """
    executor = make_executor(options.executor, options.scheduler)
    before = None if options.since is None else load(options.since)
    serial = SerialProgress(progress)
    folder = _folder(options)
    if folder.exists() and not options.rebuild:
        # Before anything is looked for: this is quickly said.
        with held(folder, make=False):
            if options.resume:
                refuse_lost(folder)
            else:
                _refuse_other(folder)
    prepared = prepare_matrix(options, serial)
    with held(folder, make=not options.resume or options.rebuild):
        return _run(options, prepared, folder, executor, before, serial)


def _folder(options: QualifyOptions) -> Path:
    if options.out is not None:
        return options.out.absolute()
    return last_folder(options.matrix) if options.resume or options.rebuild else new_folder()


def _refuse_other(folder: Path) -> None:
    """Refuse a folder that has a qualification which nobody asked to go on with, or one without its results file."""
    if has_store(folder):
        raise ConfigurationError(
            f"--out {folder} has a qualification already",
            hint="--resume goes on with it; for another one name a new folder",
        )
    refuse_lost(folder)


def _open(options: QualifyOptions, prepared: Prepared, folder: Path, progress: Progress) -> Store:
    """The results file: made, opened, or made anew.

    Raises:
        ConfigurationError: it is of another matrix, or of another version of harness.
    """
    if options.rebuild:
        return rebuild(folder, prepared.planned, progress.message)
    if not options.resume:
        _refuse_other(folder)
    if not has_store(folder):
        refuse_lost(folder)
        # What was killed before it had written anything left an empty file at most.
        return Store.create(folder)
    store = Store.open(folder)
    try:
        told = other_matrix(store.facts, prepared.matrix, folder)
    except ConfigurationError:
        store.close()
        raise
    if told:
        progress.message(told)
    return store


def other_matrix(facts: Mapping[str, Any], matrix: Matrix, folder: Path) -> str:
    """What to say when a qualification that is gone on with was begun with another file; empty when it was not.

    Args:
        facts: what is kept of the qualification.
        matrix: the matrix that was named.
        folder: the qualification's folder.

    Raises:
        ConfigurationError: it is of a matrix with another title.
    """
    before = facts.get("matrix", "")
    if not before or same_file(before, matrix.file):
        return ""
    if facts.get("title") != matrix.title:
        raise ConfigurationError(
            f"{folder} is the qualification of another matrix: {before}", hint="name another folder with --out"
        )
    return f"{folder} was begun with {before}: taken for the same matrix, since its title is the same"


def _run(
    options: QualifyOptions,
    prepared: Prepared,
    folder: Path,
    executor: Executor,
    before: Qualification | None,
    progress: Progress,
) -> Done:
    store = _open(options, prepared, folder, progress)
    try:
        left = what_is_left(prepared.planned, store.last, frozenset(prepared.wanted), forced=options.cell is not None)
        clock = Clock()
        facts, cells = _facts(prepared, clock.started.date()), prepared.planned
        if store.planned and len(prepared.wanted) < len(cells):
            facts, cells = with_asked(store, facts, [cells[index] for index in prepared.wanted])
        store.plan(facts, cells)
        jobs = _jobs(prepared, left, options.run.jobs)
        tell_plan(prepared, left, jobs, folder, progress)
        session = store.begin(
            clock.started.isoformat(timespec="seconds"), options.run.argv, host_facts(), executor.name, jobs
        )
        keeper = Keeper(
            store, session, folder, prepared.planned, prepared.matrix, clock, progress, rerun_words(options)
        )
        state = "failed"
        names: tuple[str, ...] = ()
        try:
            if left.again:
                progress.run_started(len(left.again), jobs)
                ended = executor.run(_work(prepared, left, jobs, keeper), progress)
                keeper.notes += ended.notes
                names = tuple(prepared.planned[index].name for index in ended.left)
                state = "interrupted" if ended.interrupted else "done"
            else:
                state = "done"
        finally:
            _end(store, session, clock, state, keeper.notes)
            Durations().merge(keeper.durations)
        found = read(store)
        since = str(options.since)
        if before is None and found.comparison is not None:
            # Of what only some cells were asked for in: it is about all of them.
            since = found.comparison.folder
            before = _loaded(since)
        if before is not None:
            changes = compare(before, found, prepared.matrix.limits.slower, since)
            store.note("comparison", changes.model_dump())
            found = found.model_copy(update={"comparison": changes})
        wanted = tuple(prepared.planned[index] for index in prepared.wanted)
        asked = None if len(wanted) == len(prepared.planned) else asked_names(wanted, store.last)
    finally:
        store.close()
    return Done(folder, found, asked, state == "interrupted", names)


def asked_names(wanted: Sequence[Planned], last: Mapping[str, Last]) -> tuple[str, ...]:
    """Names of the cells that the exit code is about: those asked for, without what a worker could not run (SKIP).

    Args:
        wanted: the cells that were asked for.
        last: the last attempt at each, by name.
    """
    return tuple(
        one.name
        for one in wanted
        if one.name not in last
        or last[one.name].outcome != Outcome.SKIP
        or last[one.name].fingerprint != one.fingerprint
    )


def rerun_words(options: QualifyOptions) -> tuple[str, ...]:
    """The words of the command line that say how cells are run, where they are not the default."""
    words = [] if options.run.accel == "auto" else ["--accel", options.run.accel]
    words += [] if options.run.usdm is None else ["--usdm", str(options.run.usdm)]
    words += ["--fresh-boot"] if options.run.fresh_boot else []
    words += [] if options.executor == "local" else ["--executor", options.executor]
    words += [] if options.scheduler is None else ["--scheduler", options.scheduler]
    return tuple(words)


def _loaded(folder: str) -> Qualification | None:
    """The earlier qualification of a comparison; None where it is not there any more."""
    try:
        return load(Path(folder))
    except (ConfigurationError, InfrastructureError):
        return None


def _end(store: Store, session: int, clock: Clock, state: str, notes: Sequence[str]) -> None:
    """Write down how the session ended; when even that cannot be written, what made it end is the error to tell."""
    try:
        store.end(session, clock.seconds, state, notes)
    except InfrastructureError:
        if state == "done":
            raise


def _facts(prepared: Prepared, day: date) -> dict[str, object]:
    matrix = prepared.matrix
    return {
        "title": matrix.title,
        "matrix": str(matrix.file.absolute()),
        "axes": {axis: list(values) for axis, values in matrix.axes.items()},
        "not_run": [one.model_dump() for one in prepared.plan.not_run],
        "known": [one.model_dump(mode="json") for one in matrix.known],
        "day": day.isoformat(),
        "notes": list(prepared.plan.notes),
        "comparison": None,
        "slower": matrix.limits.slower,
    }


def _jobs(prepared: Prepared, left: Left, asked: int | None) -> int:
    guests = any(isinstance(prepared.plan.items[index].cell.scenario, Scenario) for index in left.again)
    return max(1, min(asked or default_jobs(prepared.options.start if guests else "bare"), len(left.again)))


def _work(prepared: Prepared, left: Left, jobs: int, keeper: Keeper) -> Work:
    items = prepared.plan.items
    return Work(
        cells=[item.cell for item in items],
        order=order(items, prepared.grouped(left.again), prepared.options.start, Durations().load()),
        resources=prepared.resources,
        options=prepared.options,
        jobs=jobs,
        folder=keeper.folder,
        again=keeper.again,
    )


def tell_plan(prepared: Prepared, left: Left, jobs: int, folder: Path | None, progress: Progress) -> None:
    """Say what there is to do."""
    total, points = len(prepared.planned), prepared.plan.points
    progress.message(f"{prepared.matrix.title}: {total} cells on {points} point{'s' * (points != 1)}")
    if left.kept:
        progress.message(f"{left.kept} cells are done and unchanged: kept")
    for reason, number in left.reasons.items():
        progress.message(f"{number} cell{'s are' if number != 1 else ' is'} run again: {reason}")
    if left.again:
        seconds = prepared.seconds(left.again, jobs)
        progress.message(f"{len(left.again)} to run, about {_span(seconds)}{f', into {folder}' if folder else ''}")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
