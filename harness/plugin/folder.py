"""The folder of ``--harness-out``: made before the tests, and made one that ``harness report`` reads behind them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Final

import pytest

from harness.errors import HarnessError
from harness.plugin.options import value_of
from harness.plugin.state import say, state_of
from harness.report.json_report import CELL_FILE, RUN_FILE, load_run, write_cell, write_run
from harness.results import CellResult, RunResult
from harness.run.cell import cell_facts
from harness.run.cells import Cell
from harness.run.outcome import errored
from harness.run.schedule import host_facts, make_run_folder

_BEGUN: Final = pytest.StashKey[tuple[RunResult, float]]()


def make_out(config: pytest.Config) -> None:
    """Make the folder, in the place of that of an earlier run.

    One that only the environment names is added to instead: this may be a session without any scenario.

    Raises:
        pytest.UsageError: there is something else in it, or it cannot be made.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    run = RunResult(started=started, argv=tuple(sys.argv), host=host_facts(), interrupted=True)
    config.stash[_BEGUN] = run, monotonic()
    if not config.getoption("harness_out"):
        return
    try:
        folder = make_run_folder(Path(value_of(config, "out")))
    except HarnessError as error:
        text = error.message.replace("--out", "--harness-out") + (f" (hint: {error.hint})" if error.hint else "")
        raise pytest.UsageError(text) from None
    # So that the folder is known for a run's also when this process is killed.
    write_run(run, folder)


def note_failed_setup(config: pytest.Config, cell: Cell, nodeid: str, error: HarnessError) -> None:
    """Leave a verdict of a cell that something was missing for, so that it is not missing itself."""
    folder = state_of(config).new_folder(nodeid)
    folder.mkdir(parents=True)
    write_cell(errored(error, cell_facts(cell) | {"folder": str(folder)}), folder)


def finish_out(config: pytest.Config, *, interrupted: bool) -> None:
    """Write ``run.json`` with every cell that left a verdict, where this session left one.

    Args:
        config: pytest's configuration.
        interrupted: not every test was run.
    """
    if _BEGUN not in config.stash:
        return
    run, began = config.stash[_BEGUN]
    folder = Path(value_of(config, "out"))
    files = sorted(folder.glob(f"*/{CELL_FILE}"))
    first = datetime.fromisoformat(run.started).timestamp()
    if not any(file.stat().st_mtime >= first for file in files):
        return
    cells: list[CellResult] = []
    for file in files:
        try:
            cells += load_run(file.parent).cells
        except HarnessError as error:
            # It was there before, and is somebody else's.
            say(f"left out of {folder / RUN_FILE}: {error.message}")
    more = {"cells": tuple(cells), "seconds": round(monotonic() - began, 3), "interrupted": interrupted}
    write_run(run.model_copy(update=more), folder)
