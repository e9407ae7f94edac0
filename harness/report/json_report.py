"""Results as JSON: ``verdict.json`` of a cell, ``run.json`` of a run, and the output of ``--json``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from harness.errors import INTERRUPTED, ConfigurationError, FailureClass, worst_exit_code
from harness.report.text import counts, write_text
from harness.results import CellResult, Outcome, Record, RunResult

CELL_FILE: Final = "verdict.json"
RUN_FILE: Final = "run.json"

_Result = TypeVar("_Result", bound=Record)


def write_cell(result: CellResult, folder: Path) -> Path:
    """Write a cell's ``verdict.json`` into its folder and return the file's path."""
    return write_text(folder / CELL_FILE, _text(result.model_dump()))


def write_run(result: RunResult, folder: Path) -> Path:
    """Write ``run.json``, which has the whole run with all evidence, and return its path."""
    return write_text(folder / RUN_FILE, _text(result.model_dump()))


def run_json(result: RunResult) -> str:
    """A run for another program: outcomes, verdicts, counts and the exit code, without the evidence.

    The evidence is in the cells' folders and in ``run.json``.
    """
    document = result.model_dump(exclude={"cells": {"__all__": {"evidence", "reference"}}})
    document["counts"] = {str(outcome): number for outcome, number in counts(result.cells).items()}
    document["exit_code"] = exit_code(result)
    return _text(document)


def exit_code(result: RunResult) -> int:
    """The exit code that a run calls for: 130 when it was interrupted, else the worst of its cells.

    A run in which nothing ran, because every scenario was skipped, must not look like one that passed: 2.
    """
    if result.interrupted:
        return INTERRUPTED
    if all(cell.outcome is Outcome.SKIP for cell in result.cells):
        return FailureClass.CONFIGURATION.exit_code
    return worst_exit_code([cell.failure_class for cell in result.cells if cell.failure_class is not None])


def load_run(folder: Path) -> RunResult:
    """Read a run again from its folder.

    A run that was killed has no ``run.json``; then the cells that had finished are collected from their own files.

    Raises:
        ConfigurationError: the folder has no results, or a file in it cannot be read as such.
    """
    file = folder / RUN_FILE
    if file.is_file():
        return _read(file, RunResult)
    cells = [_read(found, CellResult) for found in sorted(folder.rglob(CELL_FILE))]
    if not cells:
        raise ConfigurationError(
            f"{folder} has no results: neither {RUN_FILE} nor a {CELL_FILE} below it",
            hint="give the folder of a run; the summary of a run names it",
        )
    seconds = sum(cell.seconds for cell in cells)
    return RunResult(started="", argv=(), cells=tuple(cells), seconds=seconds, interrupted=True)


def _read(file: Path, model: type[_Result]) -> _Result:
    try:
        return model.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            reason = f"{place}: {first['msg']}" if place else first["msg"]
        else:
            reason = str(error)
        hint = "it was written by another version of the harness, or is damaged; run the scenarios again"
        raise ConfigurationError(f"{file} is no result of a run: {reason}", hint=hint) from error


def _text(document: dict[str, Any]) -> str:
    # Plain ASCII: a step may have observed a string that is no valid Unicode, and any reader takes the escapes.
    try:
        return json.dumps(document, indent=2, default=str, allow_nan=False) + "\n"
    except ValueError:
        # JSON has no infinity and no NaN; Python would write them all the same, and other readers would stumble.
        return json.dumps(_finite(document), indent=2, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
