"""``results.sqlite``: the results of a qualification, each written when it is there.

Every change is one transaction with SQLite's rollback journal, so whatever ends the process, what was committed stays.
The order of things is that of row numbers, never that of clocks.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from harness.errors import ConfigurationError, InfrastructureError
from harness.qualified.records import AXES
from harness.qualified.tables import APPLICATION, FORMAT, TABLES
from harness.results import CellResult

FILE: Final = "results.sqlite"
CELLS: Final = "cells"
# Another process may read (a report); it holds its lock for milliseconds.
_BUSY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell that is to be run.

    Args:
        name: its name, unique.
        scenario: the scenario's id.
        point: axis to value, of the axes that the matrix names.
        labels: axis to value, of every axis.
        fingerprint: hash over what its result depends on.
        made_of: what the fingerprint is over, by name.
        note: why its expectations differ from the scenario's file; or empty.
    """

    name: str
    scenario: str
    point: Mapping[str, str]
    labels: Mapping[str, str]
    fingerprint: str
    made_of: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Last:
    """The last attempt at a cell.

    Args:
        attempt: its number, from 1.
        outcome: pass, fail, error or skip.
        failure_class: why not, or empty.
        fingerprint: the cell's, then.
        made_of: what that was over.
    """

    attempt: int
    outcome: str
    failure_class: str
    fingerprint: str
    made_of: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Session:
    """One start of the program, as the table has it."""

    number: int
    started: str
    argv: tuple[str, ...]
    host: dict[str, str]
    executor: str
    jobs: int
    seconds: float
    ended: str
    notes: tuple[str, ...]


class Store:
    """The open file. Used by one thread at a time.

    Args:
        folder: the qualification's folder.
        connection: to its file.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection

    @classmethod
    def create(cls, folder: Path, name: str = FILE) -> Store:
        """Make an empty file in a folder that has none.

        Args:
            folder: the qualification's folder.
            name: the file's name, for one that is renamed when it is whole.

        Raises:
            InfrastructureError: it cannot be written.
        """
        file = folder / name
        with _written(file):
            connection = _connect(file, "rwc")
            connection.executescript(
                f"BEGIN IMMEDIATE;{TABLES}PRAGMA application_id={APPLICATION};PRAGMA user_version={FORMAT};COMMIT;"
            )
        return cls(folder, connection)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a file that is there, after a check that it is whole.

        Args:
            folder: the qualification's folder.

        Raises:
            ConfigurationError: there is none, or it is of another format.
            InfrastructureError: it is damaged or lost, or cannot be read or written.
        """
        file = folder / FILE
        if not has_store(folder):
            refuse_lost(folder)
            raise ConfigurationError(
                f"{folder} has no {FILE}", hint="give the folder of a qualification; 'harness qualify' names it"
            )
        try:
            # Also to read: what a killed process has begun is undone first. A file that may not be written is read.
            connection = _connect(file, "rw")
            _check_format(connection, file)
            found = connection.execute("PRAGMA integrity_check(3)").fetchall()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "") in ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM"):
                raise InfrastructureError(f"{file} cannot be opened: {error}", hint=_PERMISSIONS) from error
            raise InfrastructureError(f"{file} is damaged: {error}", hint=_REBUILD) from error
        if found != [("ok",)]:
            raise InfrastructureError(f"{file} is damaged: {' '.join(str(found[0][0]).split())}", hint=_REBUILD)
        return cls(folder, connection)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of the qualification as a whole, by name."""
        return {name: json.loads(value) for name, value in self._rows("SELECT name, value FROM facts")}

    def plan(self, facts: Mapping[str, Any], planned: Sequence[Planned]) -> None:
        """Write down what there is to run, in place of what was written before.

        Args:
            facts: what is known of the qualification as a whole: plain JSON.
            planned: the cells in their order.

        Raises:
            InfrastructureError: the disk is full, or the file cannot be written.
        """
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(name, json.dumps(value, default=str)) for name, value in facts.items()],
            )
            connection.execute("DELETE FROM planned")
            connection.executemany(
                "INSERT INTO planned VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        at,
                        p.name,
                        p.scenario,
                        json.dumps(dict(p.point)),
                        json.dumps(dict(p.labels)),
                        p.fingerprint,
                        p.note,
                    )
                    for at, p in enumerate(planned)
                ],
            )

    def note(self, name: str, value: object) -> None:
        """Write down one more fact, plain JSON, of the qualification as a whole.

        Raises:
            InfrastructureError: as :meth:`plan`.
        """
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value, default=str)))

    def begin(self, started: str, argv: Sequence[str], host: Mapping[str, str], executor: str, jobs: int) -> int:
        """Write down that a session begins, and give its number.

        Raises:
            InfrastructureError: as :meth:`plan`.
        """
        with self._transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO sessions (started, argv, host, executor, jobs) VALUES (?, ?, ?, ?, ?)",
                (started, json.dumps(list(argv)), json.dumps(dict(host)), executor, jobs),
            )
            return int(cursor.lastrowid or 0)

    def end(self, session: int, seconds: float, ended: str, notes: Sequence[str]) -> None:
        """Write down how a session ended.

        Raises:
            InfrastructureError: as :meth:`plan`.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE sessions SET seconds = ?, ended = ?, notes = ? WHERE number = ?",
                (seconds, ended, json.dumps(list(notes)), session),
            )

    def add(self, session: int, seconds: float, cell: Planned, attempt: int, result: CellResult) -> None:
        """Keep the result of an attempt.

        Args:
            session: the session's number.
            seconds: how long the session has lasted.
            cell: the cell.
            attempt: which attempt at it, from 1.
            result: the result.

        Raises:
            InfrastructureError: as :meth:`plan`. What was kept before stays.
        """
        row = _row(session, cell, attempt, result, self.folder)
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        with self._transaction() as connection:
            connection.execute(f"INSERT INTO results ({names}) VALUES ({marks})", tuple(row.values()))  # noqa: S608
            connection.execute("UPDATE sessions SET seconds = ? WHERE number = ?", (seconds, session))

    @property
    def planned(self) -> list[Planned]:
        """The cells in their order."""
        rows = self._rows("SELECT name, scenario, point, labels, fingerprint, note FROM planned ORDER BY position")
        return [Planned(n, s, json.loads(p), json.loads(a), f, note=note) for n, s, p, a, f, note in rows]

    @property
    def last(self) -> dict[str, Last]:
        """The last attempt at each cell that there has been one at, by the cell's name."""
        rows = self._rows(
            "SELECT name, attempt, outcome, failure_class, fingerprint, made_of FROM results ORDER BY number"
        )
        return {
            name: Last(number, outcome, why or "", mark, json.loads(of))
            for name, number, outcome, why, mark, of in rows
        }

    @property
    def sessions(self) -> list[Session]:
        """All sessions in their order."""
        rows = self._rows(
            "SELECT number, started, argv, host, executor, jobs, seconds, ended, notes FROM sessions ORDER BY number"
        )
        return [
            Session(n, at, tuple(json.loads(argv)), json.loads(host), where, jobs, s, ended, tuple(json.loads(notes)))
            for n, at, argv, host, where, jobs, s, ended, notes in rows
        ]

    def results(self) -> Iterator[tuple[str, str, CellResult]]:
        """Name and fingerprint of the cell, and the result, of every attempt, oldest first.

        Raises:
            InfrastructureError: a result cannot be read.
        """
        for name, fingerprint, where, blob in self._rows(
            "SELECT name, fingerprint, folder, result FROM results ORDER BY number"
        ):
            try:
                result = CellResult.model_validate(json.loads(zlib.decompress(blob)))
            except (zlib.error, ValueError, ValidationError) as error:
                raise InfrastructureError(
                    f"{self.folder / FILE}: the result of {name} cannot be read: {error}", hint=_REBUILD
                ) from error
            yield name, fingerprint, result.model_copy(update={"folder": str(self.folder / where) if where else ""})

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement).fetchall()
        except sqlite3.DatabaseError as error:
            raise InfrastructureError(f"{self.folder / FILE} cannot be read: {error}", hint=_REBUILD) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _written(self.folder / FILE):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors.
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


_PERMISSIONS: Final = "look at who owns the folder, and whether its file system is read-only"
_REBUILD: Final = (
    "what is in its cells can be read again: 'harness qualify MATRIX --out FOLDER --rebuild', then it goes on"
)
_GO_ON: Final = (
    "nothing that was kept is lost; make room, then go on with 'harness qualify MATRIX --out FOLDER --resume'"
)


@contextlib.contextmanager
def _written(file: Path) -> Iterator[None]:
    """SQLite's errors of writing as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY_DBMOVED"):
            raise InfrastructureError(f"{file} cannot be written: {error}", hint=_PERMISSIONS) from error
        if name == "SQLITE_BUSY":
            raise InfrastructureError(
                f"{file} is locked by another program", hint="end what has it open, then --resume"
            ) from error
        raise InfrastructureError(f"{file} cannot be written: {error}", hint=_GO_ON) from error
    except sqlite3.DatabaseError as error:
        raise InfrastructureError(f"{file} is damaged: {error}", hint=_REBUILD) from error


def has_store(folder: Path) -> bool:
    """Whether a folder has a results file with anything in it."""
    file = folder / FILE
    return file.is_file() and file.stat().st_size > 0


def refuse_lost(folder: Path) -> None:
    """Refuse a folder that has results of cells and no results file, or an empty one.

    Raises:
        InfrastructureError: it is such a folder.
    """
    cells = folder / CELLS
    if has_store(folder) or not cells.is_dir() or not any(cells.iterdir()):
        return
    what = "is empty" if (folder / FILE).exists() else "is gone"
    raise InfrastructureError(f"{folder / FILE} {what}, and {cells} has results", hint=_REBUILD)


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _check_format(connection: sqlite3.Connection, file: Path) -> None:
    ours = connection.execute("PRAGMA application_id").fetchone()[0]
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if ours != APPLICATION:
        raise ConfigurationError(f"{file} is no file of a qualification", hint="name another folder with --out")
    if found != FORMAT:
        age = "a later" if found > FORMAT else "an earlier"
        raise ConfigurationError(
            f"{file} has format {found}, and this version of harness reads format {FORMAT}",
            hint=f"it is from {age} version of harness; use that one, or qualify again in another folder",
        )


def _row(session: int, cell: Planned, attempt: int, result: CellResult, folder: Path) -> dict[str, Any]:
    """A result as columns."""
    # Plain ASCII: a step may have observed a string that is no valid Unicode.
    text = json.dumps(result.model_dump(), default=str)
    versions = result.versions
    where = Path(result.folder) if result.folder else None
    return {
        "session": session,
        "name": cell.name,
        "attempt": attempt,
        "scenario": cell.scenario,
        **{axis: cell.labels.get(axis) for axis in AXES},
        "outcome": str(result.outcome),
        "failure_class": None if result.failure_class is None else str(result.failure_class),
        "message": result.message.encode("utf-8", "replace").decode(),
        "seconds": result.seconds,
        "steps_seconds": result.stages.get("steps"),
        "start": result.start,
        "folder": "" if where is None else str(where.relative_to(folder) if where.is_relative_to(folder) else where),
        "fingerprint": cell.fingerprint,
        "made_of": json.dumps(dict(cell.made_of)),
        "harness": versions and versions.harness,
        "qemu_version": versions and versions.qemu,
        "qemu_build": versions and versions.qemu_build,
        "kernel_release": versions and versions.kernel,
        "image_key": versions and versions.image_key,
        "payload": versions and versions.payload,
        "template": versions and versions.template,
        "accelerator": versions and versions.accelerator,
        "oracle": str(versions.oracle) if versions is not None and versions.oracle is not None else None,
        "result": zlib.compress(text.encode("ascii")),
    }
