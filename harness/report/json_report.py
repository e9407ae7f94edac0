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
ROW_FILE: Final = "row.json"
"""Beside the ``verdict.json`` of an attempt in a qualification: what of its row is not in there."""

_Result = TypeVar("_Result", bound=Record)


def write_cell(result: CellResult, folder: Path) -> Path:
    """Write a cell's ``verdict.json`` into its folder and return the file's path.

    Args:
        result: the cell's result.
        folder: the cell's folder, which is there.
    """
    return write_text(folder / CELL_FILE, _text(result.model_dump()))


def write_run(result: RunResult, folder: Path) -> Path:
    """Write ``run.json``, which has the whole run with all evidence, and return its path.

    Args:
        result: the result of the run.
        folder: the run's folder, which is there.
    """
    return write_text(folder / RUN_FILE, _text(result.model_dump()))


def run_json(result: RunResult) -> str:
    """A run for another program: outcomes, verdicts, counts and the exit code, without the evidence.

    The evidence is in the cells' folders and in ``run.json``.

    Args:
        result: the result of the run.
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

    A run that was killed has no ``run.json``; then the cells that had finished are collected from their own files, at
    most two folders below. The folder of one cell is read as a finished run of this cell.

    Raises:
        ConfigurationError: the folder has no results, is a qualification without its results file, or a file in it
            cannot be read as a result.
    """
    file = folder / RUN_FILE
    if file.is_file():
        return _read(file, RunResult)
    own = folder / CELL_FILE
    if own.is_file():
        cell = _read(own, CellResult)
        return RunResult(started="", argv=(), cells=(cell,), seconds=cell.seconds)
    try:
        files = sorted(found for pattern in (f"*/{CELL_FILE}", f"*/*/{CELL_FILE}") for found in folder.glob(pattern))
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be read: {error}", hint="give the folder of a run") from error
    if not files:
        raise ConfigurationError(
            f"{folder} has no results: neither {RUN_FILE} nor a {CELL_FILE} in a folder of it",
            hint="give the folder of a run; the summary of a run names it",
        )
    if any((found.parent / ROW_FILE).is_file() for found in files):
        raise ConfigurationError(
            f"{folder} has cells of a qualification, and no results file",
            hint="make it anew from the cells: 'harness qualify MATRIX --out FOLDER --rebuild'",
        )
    cells = [_read(found, CellResult) for found in files]
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


def as_json(document: dict[str, Any], indent: int | None = 2) -> str:
    """A document as JSON in plain ASCII; infinity and NaN, which JSON has not, as null."""
    # A step may have observed a string that is no valid Unicode, and any reader takes the escapes.
    try:
        return json.dumps(document, indent=indent, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(document), indent=indent, default=str)


def _text(document: dict[str, Any]) -> str:
    return as_json(document) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
