"""Run cells in parallel, write the run folder, stop cleanly."""

from __future__ import annotations

import os
import platform
import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from harness.errors import ConfigurationError, InfrastructureError
from harness.machine.emulator import stop_all
from harness.paths import runs_dir
from harness.report.json_report import write_cell, write_run
from harness.results import CellResult, Progress, RunResult
from harness.run.cell import run_cell
from harness.run.cells import Cell, expand
from harness.run.jobs import available_memory, default_jobs
from harness.run.options import RunOptions
from harness.run.resources import Resources, prepare

_KEPT_RUNS = 20


class _Serial(Progress):
    """Passes calls on, one at a time."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._lock = threading.Lock()

    def cell_stage(self, scenario: str, stage: str) -> None:
        with self._lock:
            self._inner.cell_stage(scenario, stage)

    def cell_finished(self, result: CellResult) -> None:
        with self._lock:
            self._inner.cell_finished(result)

    def message(self, text: str) -> None:
        with self._lock:
            self._inner.message(text)


def run_scenarios(options: RunOptions, progress: Progress) -> RunResult:
    """Run everything that the options name.

    Ctrl-C ends the guests at once; what was done until then is in the result.

    Raises:
        ScenarioError, ConfigurationError: nothing was run because what was asked for is wrong.
        InfrastructureError: nothing was run because something is missing.
    """
    began = monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    cells = expand(options)
    serial = _Serial(progress)
    resources = prepare(options, serial.message)
    jobs = min(options.jobs or default_jobs(), len(cells))
    folder = make_run_folder(options.out)
    progress.run_started(len(cells), jobs)
    results, interrupted = _run_all(cells, resources, options, folder, serial, jobs)
    run = RunResult(
        started=started,
        argv=options.argv,
        host=host_facts(),
        cells=tuple(results[index] for index in sorted(results)),
        seconds=round(monotonic() - began, 3),
        interrupted=interrupted,
        jobs=jobs,
    )
    write_run(run, folder)
    progress.run_finished(run)
    return run


def _run_all(
    cells: list[Cell], resources: Resources, options: RunOptions, folder: Path, progress: Progress, jobs: int
) -> tuple[dict[int, CellResult], bool]:
    results: dict[int, CellResult] = {}
    stopping = threading.Event()

    def one(index: int) -> None:
        cell = cells[index]
        if stopping.is_set():
            return
        where = folder / cell.folder_name
        result = run_cell(
            cell, resources, options, where, lambda stage: progress.cell_stage(cell.name, stage), progress.message
        )
        if stopping.is_set():
            return  # its guest was ended under it: that is no result
        if result.folder:
            write_cell(result, where)
        results[index] = result
        progress.cell_finished(result)

    with ThreadPoolExecutor(jobs, thread_name_prefix="cell") as pool:
        pending: set[Future[None]] = {pool.submit(one, index) for index in range(len(cells))}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException as error:
            stopping.set()
            for future in pending:
                future.cancel()
            # A guest that was just being started is caught by a later round.
            while pending:
                stop_all()
                _, pending = wait(pending, timeout=0.2)
            if not isinstance(error, KeyboardInterrupt):
                raise
    return results, stopping.is_set()


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
