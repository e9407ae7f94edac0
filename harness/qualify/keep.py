"""What becomes of each result: kept at once, its folder thinned, tried again where the infrastructure failed."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from harness.qualified.database import Planned, Store
from harness.qualify.clock import Clock
from harness.qualify.place import attempt_folder
from harness.qualify.resume import RETRIED
from harness.report.json_report import ROW_FILE
from harness.report.text import write_text
from harness.results import CellResult, Outcome, Progress
from harness.run.axes import folder_name
from harness.run.durations import key
from harness.scenario.matrix import Matrix

THINNED: Final = 64 << 10
"""Bytes of a file that a passing cell keeps; larger ones are taken away."""


class Keeper:
    """Keeps the results of one session. Its methods are called by one thread at a time, but for :meth:`folder`.

    Args:
        store: where to.
        session: the session's number.
        root: the qualification's folder.
        planned: all cells.
        matrix: the matrix, for its limits.
        clock: when the session began.
        progress: told of what is tried again.
        more: words of the command line that say how cells are run, for what runs one of them again.

    Attributes:
        notes: what happened beside.
        durations: seconds by ``harness.run.durations.key``.
    """

    def __init__(
        self,
        store: Store,
        session: int,
        root: Path,
        planned: Sequence[Planned],
        matrix: Matrix,
        clock: Clock,
        progress: Progress,
        more: Sequence[str] = (),
    ) -> None:
        self.notes: list[str] = []
        self.durations: dict[str, float] = {}
        self._store, self._session, self._root, self._planned = store, session, root, planned
        self._matrix, self._clock, self._progress = matrix, clock, progress
        self._attempts = Counter({name: last.attempt for name, last in store.last.items()})
        self._retried: Counter[int] = Counter()
        self._more = tuple(more)

    def folder(self, index: int) -> Path:
        """The folder for the next attempt at a cell."""
        name = self._planned[index].name
        return attempt_folder(self._root, folder_name(name), self._attempts[name] + 1)

    def again(self, index: int, result: CellResult) -> bool:
        """Keep a result, and say whether its cell is to be run once more.

        Raises:
            InfrastructureError: it cannot be kept.
            OSError: its folder cannot be written.
        """
        cell = self._planned[index]
        if cell.note:
            # What it expects here stands in the matrix, so only the matrix can run it again.
            words = ["harness", "qualify", str(self._matrix.file), "--cell", cell.name, *self._more]
            result = result.model_copy(update={"rerun": shlex.join(words)})
        attempt = self._attempts[cell.name] + 1
        if result.folder:
            _write_row(Path(result.folder), cell, attempt)
        self._store.add(self._session, self._clock.seconds, cell, attempt, result)
        self._attempts[cell.name] = attempt
        if result.outcome is Outcome.PASS and result.folder:
            thin(Path(result.folder))
        if result.start and result.outcome in (Outcome.PASS, Outcome.FAIL):
            waited = result.stages.get("template", 0.0)
            self.durations[key(cell.scenario, result.start)] = max(0.0, result.seconds - waited)
        jump = self._clock.jumped()
        if jump is not None:
            self.notes.append(jump)
            self._progress.message(jump)
        return self._once_more(index, result)

    def _once_more(self, index: int, result: CellResult) -> bool:
        if result.outcome is not Outcome.ERROR or result.failure_class not in RETRIED:
            return False
        if self._retried[index] >= self._matrix.limits.retries:
            return False
        self._retried[index] += 1
        name = self._planned[index].name
        self._progress.message(
            f"{name} is tried again after an error of class {result.failure_class}: {result.message}"
        )
        return True


def thin(folder: Path) -> None:
    """Take away what is large in the folder of a cell that passed; its verdict stays."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > THINNED and path.name not in ("verdict.json", ROW_FILE):
            path.unlink()


def _write_row(folder: Path, cell: Planned, attempt: int) -> None:
    row: Mapping[str, object] = {
        "name": cell.name,
        "attempt": attempt,
        "fingerprint": cell.fingerprint,
        "made_of": dict(cell.made_of),
    }
    write_text(folder / ROW_FILE, json.dumps(row) + "\n")
