"""The content-addressed cache: entries appear whole or not at all, and are checked when they are read.

An entry is the folder ``KIND/KEY`` with a ``manifest.json`` that has the SHA-256 of every file. It is made in a folder
of its own under a lock and renamed when complete, so that a full disk, Ctrl-C or ``kill -9`` leave no half entry; what
a killed builder left is swept by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import filelock

from harness import stopping
from harness.errors import InfrastructureError
from harness.paths import cache_dir

Say = Callable[[str], None]
T = TypeVar("T")

_MANIFEST = "manifest.json"
_STAMPS = "stamps.json"
_ASIDE = "discarded-"
_FORMAT = 1
# Seconds after which a wait for a lock looks whether it is to stop.
_LOCK_SLICE = 0.2


class DamagedEntryError(InfrastructureError):
    """A file of an entry is missing or not what the manifest says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One complete entry.

    Args:
        kind: ``image`` or ``qemu``.
        key: the hash over everything that went into it, hex.
        folder: where its files are.
        facts: what its maker wrote down (names, versions).
        created: ISO 8601 time in UTC.
    """

    kind: str
    key: str
    folder: Path
    facts: dict[str, object]
    created: str

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file())


def find(kind: str, key: str, *, trust_stamps: bool = False) -> Entry | None:
    """A complete and undamaged entry, or None when there is none.

    Args:
        kind: the entry's kind.
        key: its key.
        trust_stamps: hash only files whose inode, size or times changed since they were last hashed. For entries that
            are too large to hash at every use.

    Raises:
        DamagedEntryError: the entry is there, but a file is missing or differs; it is set aside first.
    """
    entry = _read(_folder(kind, key))
    if entry is None or _verify(entry, key, trust_stamps=trust_stamps) is None:
        return entry
    try:
        with _lock(kind, key):
            # Another process may have found the same and made the entry anew meanwhile.
            entry = _read(_folder(kind, key))
            problem = None if entry is None else _verify(entry, key, trust_stamps=trust_stamps)
            if entry is None or problem is None:
                return entry
            _discard(_folder(kind, key))
    except OSError as error:
        raise disk_error(error) from error
    raise DamagedEntryError(
        f"the cached {kind} {key[:12]} is damaged ({problem}); it was removed",
        hint="the next build or fetch makes it anew",
    )


def by_key(kind: str, key: str) -> Entry:
    """An entry that must be there, undamaged; what did not change since it was last hashed is not hashed again.

    Raises:
        InfrastructureError: it is not there, or was damaged.
    """
    entry = find(kind, key, trust_stamps=True)
    if entry is None:
        raise InfrastructureError(f"the cache {cache_dir()} has no {kind} {key[:12]}")
    return entry


def there(look: Callable[[], T], *, only: bool, say: Say, doing: str) -> T | None:
    """What ``look`` finds in the cache; None when it has to be made.

    Args:
        look: finds it, or raises ``InfrastructureError``.
        only: it cannot be made, so its absence is an error.
        say: told that it was damaged.
        doing: what is done then, e.g. ``building``.

    Raises:
        InfrastructureError: it is not there, and cannot be made.
    """
    try:
        return look()
    except DamagedEntryError as error:
        if only:
            raise
        say(f"{error.message}; {doing} it again")
    except InfrastructureError:
        if only:
            raise
    return None


def digests(entry: Entry) -> dict[str, str]:
    """The SHA-256 of every file of an entry by its name, as its manifest has it; ``link:TARGET`` of a link."""
    files: dict[str, str] = json.loads((entry.folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    return files


def digests_of(folder: Path) -> dict[str, str]:
    """What :func:`digests` of an entry with these files would be."""
    return {name: _digest(path) for name, path in _files(folder)}


def entries(kind: str) -> list[Entry]:
    """All complete entries of a kind, newest first; they are not verified."""
    folder = cache_dir() / kind
    found = [_read(path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((entry for entry in found if entry), key=lambda entry: entry.created, reverse=True)


def find_made_from(kind: str, recipe: str) -> Entry | None:
    """The newest entry that was made from a recipe as it is now, every byte verified, or None.

    Args:
        kind: the entry's kind.
        recipe: the key of the recipe, which is the fact ``recipe`` of what was made from it.

    Raises:
        DamagedEntryError: as :func:`find`.
    """
    for entry in entries(kind):
        if entry.facts.get("recipe") == recipe:
            found = find(kind, entry.key)
            if found is not None:
                return found
    return None


def store(kind: str, key: str, fill: Callable[[Path], dict[str, object]], say: Say | None = None) -> Entry:
    """Make an entry unless another process has made it meanwhile.

    Args:
        kind: the entry's kind.
        key: its key.
        fill: writes the files into the folder that it is given and returns the facts.
        say: told when another process is waited for.

    Raises:
        InfrastructureError: the disk is full or the cache cannot be written.
    """
    try:
        with _lock(kind, key, say):
            _sweep(kind, key)
            found = _read(_folder(kind, key))
            if found is not None:
                return found
            return _make(kind, key, fill)
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> InfrastructureError:
    """The clear form of an error while writing to the cache."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InfrastructureError(
            f"the disk is full while writing to the cache {cache_dir()}",
            hint="free some space ('harness template prune', 'harness image prune'), or point XDG_CACHE_HOME elsewhere",
        )
    return InfrastructureError(f"the cache {cache_dir()} cannot be used: {error}")


def mark_used(entry: Entry) -> None:
    """Note that an entry is being used now, for :func:`last_used`."""
    with contextlib.suppress(OSError):  # a cache that cannot be written can still be used
        os.utime(entry.folder / _MANIFEST)


def last_used(entry: Entry) -> float:
    """When an entry was made or last marked as used, in seconds since 1970; 0 when it is gone."""
    try:
        return (entry.folder / _MANIFEST).stat().st_mtime
    except OSError:
        return 0.0


def remove(entry: Entry) -> None:
    """Delete an entry.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    try:
        with _lock(entry.kind, entry.key):
            _discard(entry.folder)
    except OSError as error:
        raise disk_error(error) from error


def prune(kind: str, group: Callable[[Entry], str | None], keep: int, say: Say) -> list[str]:
    """Remove the entries that belong to no group, and all but the newest ``keep`` of each; gives the removed keys.

    Args:
        kind: the entries' kind.
        group: gives an entry's group, also its name in messages, or None for one that is of no use any more.
        keep: how many of each group stay.
        say: told what was removed.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    kept: dict[str, int] = {}
    removed = []
    for entry in entries(kind):
        name = group(entry)
        if name is not None and kept.get(name, 0) < keep:
            kept[name] = kept.get(name, 0) + 1
            continue
        remove(entry)
        say(f"removed {kind} {entry.facts.get('name', '')} {entry.key[:12]}".replace("  ", " "))
        removed.append(entry.key)
    return removed


def remove_tree(folder: Path) -> None:
    """Delete a tree as far as possible, also one of unpacked packages, whose folders may be read-only."""
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError):  # another process may be deleting it as well
        folder.chmod(0o700)
        for parent, names, _ in os.walk(folder):
            for path in (Path(parent, name) for name in names):
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def waiting_lock(path: Path, say: Say | None = None) -> Iterator[None]:
    """Hold a lock file; the lock ends with the process, however that ends.

    Args:
        path: the lock file, in an existing folder.
        say: told when another process has the lock and is waited for.

    Raises:
        KeyboardInterrupt: this thread was told to stop (``harness.stopping``) before it had the lock.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if say is not None:
            say("waiting for what somebody else is making for the cache")
        while not lock.is_locked:
            stopping.check()
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=_LOCK_SLICE)
    try:
        # Who had the lock may have let it go only because all are to stop.
        stopping.check()
        yield
    finally:
        lock.release()


def _folder(kind: str, key: str) -> Path:
    return cache_dir() / kind / key


@contextmanager
def _lock(kind: str, key: str, say: Say | None = None) -> Iterator[None]:
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / f"{kind}-{key}", say):
        yield


def _make(kind: str, key: str, fill: Callable[[Path], dict[str, object]]) -> Entry:
    temporary = cache_dir() / "making" / f"{kind}-{key}"
    temporary.mkdir(parents=True)
    try:
        facts = fill(temporary)
        manifest = {
            "format": _FORMAT,
            "kind": kind,
            "key": key,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": facts,
            "files": digests_of(temporary),
        }
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        stamps = {name: _stamp(path) for name, path in _files(temporary)}
        (temporary / _STAMPS).write_text(json.dumps(stamps), encoding="utf-8")
        # The rename must not come to the disk before the data: a power cut would leave an entry of empty files.
        os.sync()
        folder = _folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # An entry whose manifest cannot be read counts as none, but would be in the way.
        _discard(folder)
        temporary.rename(folder)
    except BaseException:
        remove_tree(temporary)
        raise
    entry = _read(folder)
    if entry is None:
        raise InfrastructureError(f"the new cache entry {folder} cannot be read back")
    return entry


def _sweep(kind: str, key: str) -> None:
    """Remove what a killed builder left: this key's folder (its lock is ours) and every other unlocked one."""
    making = cache_dir() / "making"
    if not making.is_dir():
        return
    for path in making.iterdir():
        if path.name == f"{kind}-{key}" or path.name.startswith(_ASIDE):
            remove_tree(path)
            continue
        try:
            with filelock.FileLock(cache_dir() / "locks" / path.name, timeout=0):
                remove_tree(path)
        except filelock.Timeout:
            continue


def _discard(folder: Path) -> None:
    """Take an entry out of sight at once, then delete it."""
    if not folder.exists():
        return
    aside = cache_dir() / "making" / f"{_ASIDE}{folder.name}-{os.getpid()}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    remove_tree(aside)


def _read(folder: Path) -> Entry | None:
    try:
        data = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if data.get("format") != _FORMAT:
        return None
    return Entry(data["kind"], data["key"], folder, data["facts"], data["created"])


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file and link below a folder, the cache's own two excepted, sorted by name."""
    found = [(str(path.relative_to(folder)), path) for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return sorted((name, path) for name, path in found if name not in (_MANIFEST, _STAMPS))


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link:{path.readlink()}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(entry: Entry, key: str, *, trust_stamps: bool) -> str | None:
    """What is wrong with an entry, or None."""
    if entry.key != key:
        return f"it was made as {entry.key[:12]}"
    wanted = digests(entry)
    stamps = _load_stamps(entry.folder) if trust_stamps else {}
    fresh: dict[str, list[int]] = {}
    for name, digest in wanted.items():
        path = entry.folder / name
        try:
            stamp = _stamp(path)
            if stamps.get(name) != stamp and _digest(path) != digest:
                return f"{name} was changed"
        except OSError:
            return f"{name} is missing"
        fresh[name] = stamp
    if trust_stamps and fresh != stamps:
        temporary = entry.folder / f"{_STAMPS}.{os.getpid()}"
        try:
            temporary.write_text(json.dumps(fresh), encoding="utf-8")
            temporary.replace(entry.folder / _STAMPS)
        except OSError:
            temporary.unlink(missing_ok=True)  # only costs hashing again
    return None


def _stamp(path: Path) -> list[int]:
    """What changes with a file's content: inode, size, times."""
    stat = path.lstat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _load_stamps(folder: Path) -> dict[str, list[int]]:
    try:
        data = json.loads((folder / _STAMPS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
