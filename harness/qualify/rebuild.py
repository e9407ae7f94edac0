"""A damaged results file made anew from the folders of its cells."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from harness.qualified.database import CELLS, FILE, Planned, Store
from harness.report.json_report import CELL_FILE, ROW_FILE
from harness.results import CellResult

_NEW: Final = f"{FILE}.new"
"""The file until it is whole: what is interrupted leaves the old one where it was."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An attempt whose folder is whole."""

    row: dict[str, Any]
    result: CellResult


def rebuild(folder: Path, planned: Sequence[Planned], say: Callable[[str], None]) -> Store:
    """Make a results file of what the folders of cells hold, and then put the old one aside.

    What has no folder that is whole will be run again: cells that never started a guest, and those that were
    being run.

    Args:
        folder: the qualification's folder.
        planned: the cells of the matrix.
        say: told what was found.

    Raises:
        InfrastructureError: it cannot be written.
        OSError: likewise.
    """
    cells = {cell.name: cell for cell in planned}
    found, lost = [], 0
    for file in (folder / CELLS).glob(f"*/{ROW_FILE}"):
        one = _read(file)
        if one is None:
            lost += 1
        elif one.row["name"] in cells:
            found.append(one)
    for left in (_NEW, f"{_NEW}-journal"):
        (folder / left).unlink(missing_ok=True)
    with contextlib.closing(Store.create(folder, _NEW)) as store:
        session = store.begin("", ("rebuilt",), {}, "local", 1)
        for one in sorted(found, key=lambda item: (item.row["attempt"], item.row["name"])):
            cell = cells[one.row["name"]]
            was = replace(cell, fingerprint=one.row["fingerprint"], made_of=one.row["made_of"])
            store.add(session, 0.0, was, one.row["attempt"], one.result)
        store.end(session, 0.0, "done", (f"its results file was made anew from {len(found)} folders of cells",))
    aside = _put_aside(folder)
    (folder / _NEW).rename(folder / FILE)
    store = Store.open(folder)
    say(f"{len(found)} results were read again{f', {lost} could not be' if lost else ''}; the old file is {aside}")
    return store


def _read(file: Path) -> _Found | None:
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        result = CellResult.model_validate(json.loads((file.parent / CELL_FILE).read_text(encoding="utf-8")))
        if not isinstance(row["name"], str) or not isinstance(row["attempt"], int):
            return None
        # What it says of its place is where it was written; the folder may have been moved since.
        result = result.model_copy(update={"folder": str(file.parent)})
        return _Found({**row, "made_of": dict(row["made_of"]), "fingerprint": str(row["fingerprint"])}, result)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put_aside(folder: Path) -> str:
    """Rename the file and its journal; the name that it has now, or ``gone``."""
    number = 1
    while (folder / f"{FILE}.damaged-{number}").exists():
        number += 1
    aside = folder / f"{FILE}.damaged-{number}"
    # The journal first: beside another file of this name SQLite would undo in that what was begun in this one.
    with contextlib.suppress(FileNotFoundError):
        (folder / f"{FILE}-journal").rename(f"{aside}-journal")
    if not (folder / FILE).exists():
        return "gone"
    (folder / FILE).rename(aside)
    return str(aside)
