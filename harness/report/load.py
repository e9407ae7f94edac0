"""What a folder holds, as a qualification: a run's, a cell's, or a qualification's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from harness.errors import ConfigurationError
from harness.qualified.records import Qualification, from_run
from harness.report.json_report import CELL_FILE, RUN_FILE, load_run
from harness.results import RunResult

STORE_FILE: Final = "results.sqlite"


def is_qualification(folder: Path) -> bool:
    """Whether a folder is one that ``harness qualify`` wrote."""
    return (folder / STORE_FILE).is_file()


def load(folder: Path) -> Qualification:
    """A finished run, one cell of it, or a qualification, from its folder.

    Args:
        folder: the folder, or the file in it that has the results.

    Raises:
        ConfigurationError: there is nothing of the kind, or it cannot be read; the message names the file.
    """
    folder = folder_of(folder)
    if is_qualification(folder):
        from harness.qualified.store import load_qualification

        return load_qualification(folder)
    return from_run(load_run(folder))


def load_results(folder: Path) -> tuple[Qualification, RunResult | None]:
    """The same, beside the run itself where it is one."""
    folder = folder_of(folder)
    if is_qualification(folder):
        return load(folder), None
    run = load_run(folder)
    return from_run(run), run


def folder_of(path: Path) -> Path:
    """The folder that a path means: itself, or that of the results file that it names.

    Raises:
        ConfigurationError: there is nothing at the path, or another file.
    """
    if path.is_dir():
        return path
    if path.is_file() and path.name in (RUN_FILE, CELL_FILE, STORE_FILE):
        return path.parent
    what = "is no folder of results" if path.exists() else "does not exist"
    raise ConfigurationError(
        f"{path} {what}", hint="give the folder of a run or of a qualification; the summary of either names it"
    )
