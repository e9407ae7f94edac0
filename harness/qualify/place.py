"""The folder of a qualification: found or made, and held by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import filelock

from harness.errors import ConfigurationError, InfrastructureError
from harness.paths import state_dir
from harness.qualified.database import CELLS, FILE, Store

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK: Final = "lock"
_HOLDER: Final = "lock.json"
_OURS: Final = {_LOCK, _HOLDER, FILE, f"{FILE}-journal", CELLS}


def qualifications_dir() -> Path:
    """Where qualifications go without ``--out``; may not exist yet."""
    return state_dir() / "qualifications"


def new_folder() -> Path:
    """A path for a new qualification below the state folder."""
    return qualifications_dir() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"


def last_folder(matrix: Path) -> Path:
    """The newest qualification of a matrix below the state folder.

    Raises:
        ConfigurationError: there is none.
        InfrastructureError: one that is newer is damaged, or cannot be read: whose it is nobody can say.
    """
    parent = qualifications_dir()
    found = sorted(parent.iterdir(), reverse=True) if parent.is_dir() else []
    for folder in found:
        try:
            with contextlib.closing(Store.open(folder)) as store:
                if same_file(store.facts.get("matrix", ""), matrix):
                    return folder
        except ConfigurationError:
            continue  # something else, or of another version
        except InfrastructureError as error:
            raise InfrastructureError(
                f"no folder was named, and this may be the newest qualification of {matrix}: {error.message}",
                hint=f"name the one that you mean: '--out {folder} --rebuild' to go on with this one, or another --out",
            ) from error
    raise ConfigurationError(
        f"--resume: there is no qualification of {matrix} in {parent}", hint="name its folder with --out"
    )


def same_file(kept: str, matrix: Path) -> bool:
    """Whether the path of a matrix that was kept is this one's, links followed."""
    return bool(kept) and Path(kept).resolve() == matrix.resolve()


@contextlib.contextmanager
def held(folder: Path, *, make: bool) -> Iterator[None]:
    """Hold a folder while the block lasts, so that no other process writes into it.

    Args:
        folder: the folder.
        make: make it where it is not there; else it must be.

    Raises:
        ConfigurationError: it has something else in it, or another process holds it.
        InfrastructureError: it cannot be made or written.
    """
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        # An interrupted --rebuild may have left only what it put aside, or what it had begun.
        begun = any(name == FILE or name.startswith(f"{FILE}.") for name in names)
        if not begun and names - _OURS:
            raise ConfigurationError(
                f"--out {folder} is not empty and no qualification's folder", hint="name a new folder"
            )
        lock.acquire()
    except filelock.Timeout:
        raise ConfigurationError(
            f"{folder} is used by another qualification{_holder(folder)}",
            hint="wait until it is done, or name another folder with --out",
        ) from None
    except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        raise ConfigurationError(f"{folder} is no folder: {error.strerror}", hint="name one with --out") from error
    except NotImplementedError as error:
        raise InfrastructureError(
            f"{folder} is on a file system without locks, which keep two processes from writing there",
            hint="name a folder on another one with --out",
        ) from error
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        (folder / _HOLDER).write_text(json.dumps({"pid": os.getpid()}) + "\n", encoding="utf-8")
        yield
    except OSError as error:
        if not _about(folder, error):
            raise
        raise write_error(folder, error) from error
    finally:
        lock.release()


def _about(folder: Path, error: OSError) -> bool:
    """Whether an error of the whole run is one of the folder: it names a file there, or says that a disk is full."""
    if error.errno in (*_FULL, errno.EROFS):
        return True
    return isinstance(error.filename, str) and Path(error.filename).absolute().is_relative_to(folder.absolute())


def write_error(folder: Path, error: OSError) -> InfrastructureError:
    """What to say when a folder cannot be written."""
    full = error.errno in _FULL
    hint = (
        "nothing that was kept is lost; make room, then go on with 'harness qualify MATRIX --out FOLDER --resume'"
        if full
        else "look at who owns the folder, and whether its file system is read-only"
    )
    return InfrastructureError(f"{folder} cannot be written: {error}", hint=hint)


def _holder(folder: Path) -> str:
    try:
        holder: Any = json.loads((folder / _HOLDER).read_text(encoding="utf-8"))
        return f" (process {int(holder['pid'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def attempt_folder(folder: Path, name: str, attempt: int) -> Path:
    """The folder for an attempt at a cell, which does not exist; what an interrupted one left there is taken away.

    Args:
        folder: the qualification's folder.
        name: the cell's name for folders.
        attempt: which attempt, from 1.
    """
    where = folder / CELLS / (name if attempt == 1 else f"{name}.{attempt}")
    where.parent.mkdir(exist_ok=True)
    if where.exists():
        shutil.rmtree(where)
    return where
