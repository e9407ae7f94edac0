"""Run cells in parallel, write the run folder, stop cleanly."""

from __future__ import annotations

import math
import os
import platform
import shutil
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from harness import stopping
from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.spec import MachineSpec
from harness.paths import runs_dir
from harness.report.json_report import write_cell, write_run
from harness.results import CellResult, Outcome, Progress, RunResult
from harness.run.cell import run_cell
from harness.run.cells import Cell, machine_spec, prepare_cells
from harness.run.crew import Crew
from harness.run.durations import Durations, key
from harness.run.jobs import StartKind, available_memory, default_jobs
from harness.run.options import RunOptions
from harness.run.resources import Resources
from harness.scenario import BareScenario, Scenario

_KEPT_RUNS = 20


class SerialProgress(Progress):
    """Passes calls on, one at a time; what several cells say in the same words only once."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def run_started(self, total: int, jobs: int) -> None:
        """Pass it on."""
        with self._lock:
            self._inner.run_started(total, jobs)

    def cell_stage(self, scenario: str, stage: str) -> None:
        """Pass it on."""
        with self._lock:
            self._inner.cell_stage(scenario, stage)

    def cell_finished(self, result: CellResult) -> None:
        """Pass it on."""
        with self._lock:
            self._inner.cell_finished(result)

    def message(self, text: str) -> None:
        """Pass it on, unless it has been said."""
        with self._lock:
            if text not in self._said:
                self._said.add(text)
                self._inner.message(text)


def run_scenarios(options: RunOptions, progress: Progress) -> RunResult:
    """Run everything that the options name.

    Ctrl-C ends the guests at once, whatever they are at; what was done until then is in the result. When this is called
    in the main thread, SIGINT is dealt with here until the last guest has ended: further ones change nothing.

    Args:
        options: what to run, and on what.
        progress: is told what happens meanwhile.

    Raises:
        ScenarioError, ConfigurationError: nothing was run because what was asked for is wrong.
        InfrastructureError: nothing was run because something is missing.
    """
    began = monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    serial = SerialProgress(progress)
    cells, resources = prepare_cells(options, serial.message)
    guests = any(isinstance(cell.scenario, Scenario) for cell in cells)
    jobs = min(options.jobs or default_jobs(options.start if guests else "bare"), len(cells))
    folder = make_run_folder(options.out)
    progress.run_started(len(cells), jobs)
    crew = Crew(lambda index: _run_one(cells[index], resources, options, folder, serial))
    durations = Durations()
    crew.run(longest_first(cells, options.start, durations.load()), jobs)
    durations.merge(_durations(cells, crew.results))
    run = RunResult(
        started=started,
        argv=options.argv,
        host=host_facts(),
        cells=tuple(crew.results[index] for index in sorted(crew.results)),
        seconds=round(monotonic() - began, 3),
        interrupted=crew.interrupted,
        jobs=jobs,
    )
    if crew.left:
        names = ", ".join(cells[index].name for index in crew.left)
        serial.message(f"not waited for, because they did not stop at once: {names}")
    write_run(run, folder)
    progress.run_finished(run)
    return run


def longest_first(cells: Sequence[Cell], start: StartKind, known: Mapping[str, float]) -> list[int]:
    """The cells' indices in the order to start them in, so that no long one begins when the others are done.

    Args:
        cells: the cells.
        start: how their guests are started.
        known: seconds by ``harness.run.durations.key``. Cells without come first, since they may be long: of those the
            first of each machine, so that threads make different templates instead of waiting for the same one; that
            of a machine with a virtual machine inside, which is minutes of work, before all.
    """
    # Without a guest a cell takes a tenth of a second: it fills the gaps at the end.
    seconds = [
        0.0 if isinstance(cell.scenario, BareScenario) else known.get(key(cell.scenario.id, start), math.inf)
        for cell in cells
    ]
    order = sorted(range(len(cells)), key=lambda index: -seconds[index])
    unknown = [index for index in order if seconds[index] == math.inf]
    firsts = {_machine(cells[index]): index for index in reversed(unknown)}
    first = sorted(firsts.values(), key=lambda index: (not _has_vm(cells[index]), index))
    begun = set(first)
    return [*first, *(index for index in order if index not in begun)]


def _machine(cell: Cell) -> tuple[MachineSpec | None, str, str]:
    """What cells have in common that are cloned from one template."""
    spec = None if isinstance(cell.scenario, BareScenario) else machine_spec(cell.scenario).frozen
    return spec, cell.qemu, cell.kernel


def _has_vm(cell: Cell) -> bool:
    return isinstance(cell.scenario, Scenario) and cell.scenario.machine.vm


def _durations(cells: Sequence[Cell], results: Mapping[int, CellResult]) -> dict[str, float]:
    """What a run has taught about durations. What an error took (a hang: its time-out) says nothing.

    Nor does the wait for a template, which happens once.
    """
    return {
        key(cells[index].scenario.id, result.start): max(0.0, result.seconds - result.stages.get("template", 0.0))
        for index, result in results.items()
        if result.start and result.outcome in (Outcome.PASS, Outcome.FAIL)
    }


def _run_one(cell: Cell, resources: Resources, options: RunOptions, folder: Path, progress: Progress) -> CellResult:
    """Run a cell in its folder of the run, and tell of its result."""
    result = run_and_write(cell, resources, options, folder / cell.folder_name, progress)
    progress.cell_finished(result)
    return result


def run_and_write(cell: Cell, resources: Resources, options: RunOptions, where: Path, progress: Progress) -> CellResult:
    """Run a cell and write its result down, in a thread of the crew.

    Args:
        cell: the cell.
        resources: what was prepared for the run.
        options: deadlines.
        where: the cell's folder; made here.
        progress: told of the cell's stages; calls may come from several threads at once.

    Raises:
        KeyboardInterrupt: the run is being stopped: the cell has no result, for its guest was ended under it.
    """

    def stage(name: str) -> None:
        stopping.check()
        progress.cell_stage(cell.name, name)

    def say(text: str) -> None:
        stopping.check()
        progress.message(text)

    result = run_cell(cell, resources, options, where, stage, say)
    stopping.check()
    if result.folder:
        write_cell(result, where)
    return result


def host_facts() -> dict[str, str]:
    """What the report says about the host."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_available": f"{available_memory() >> 20} MiB",
    }


def make_run_folder(out: Path | None) -> Path:
    """The folder for a run's evidence; without ``out`` a new one, of which the last 20 are kept.

    Raises:
        ConfigurationError: ``out`` exists and has something else in it.
        InfrastructureError: the folder cannot be made.
    """
    try:
        if out is not None:
            if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "run.json").exists())):
                raise ConfigurationError(
                    f"--out {out} is not empty and no earlier run's folder", hint="name a new folder"
                )
            if out.exists():
                shutil.rmtree(out)
            out.mkdir(parents=True)
            return out.absolute()
        parent = runs_dir()
        parent.mkdir(parents=True, exist_ok=True)
        for old in sorted(parent.iterdir())[: -_KEPT_RUNS + 1]:
            shutil.rmtree(old, ignore_errors=True)
        folder = parent / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        raise InfrastructureError(f"the run folder cannot be made: {error}") from error
    return folder
