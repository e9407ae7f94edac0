"""A cache entry as one compressed file, to be sent to another machine's cache; what arrives is checked twice.

The parcel's own hash says whether it came whole, and the manifest's hashes whether each file is what the sender has.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from harness.errors import InfrastructureError
from harness.image import cache
from harness.image.cache import Entry, Say
from harness.paths import cache_dir

# What a damaged parcel may meet on its way through the decompressor and the archive.
_BROKEN = (zstandard.ZstdError, tarfile.TarError, EOFError, ValueError)


class DamagedParcelError(InfrastructureError):
    """What arrived is not what was sent; sending it again may help."""


@dataclass(frozen=True, slots=True)
class Label:
    """What is on a parcel.

    Args:
        kind: the entry's kind.
        key: its key.
        facts: what its maker wrote down.
        files: SHA-256 of every file by its name, or ``link:TARGET``.
        size: bytes of the parcel.
        digest: SHA-256 of the parcel, hex.
    """

    kind: str
    key: str
    facts: dict[str, object]
    files: dict[str, str]
    size: int
    digest: str


def room() -> BinaryIO:
    """A file without a name in the cache, for a parcel; it is gone when it is closed, however that comes about.

    Raises:
        InfrastructureError: the cache cannot be written.
    """
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        return cast(BinaryIO, tempfile.TemporaryFile(dir=cache_dir()))
    except OSError as error:
        raise cache.disk_error(error) from error


def pack(entry: Entry) -> tuple[Label, BinaryIO]:
    """An entry as a parcel: its label, and the file, which the caller closes.

    Raises:
        InfrastructureError: the disk is full, or the entry is gone.
    """
    parcel = room()
    try:
        files = cache.digests(entry)
        with (
            zstandard.ZstdCompressor().stream_writer(parcel, closefd=False) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in files:
                archive.add(entry.folder / name, name, recursive=False)
        parcel.seek(0)
        digest = _digest(parcel)
        size = parcel.tell()
    except BaseException as error:
        parcel.close()
        if isinstance(error, OSError):
            raise cache.disk_error(error) from error
        raise
    return Label(entry.kind, entry.key, entry.facts, files, size, digest), parcel


def unpack(label: Label, parcel: BinaryIO, say: Say | None = None) -> Entry:
    """A parcel as an entry of this machine's cache, unless another process has made it meanwhile.

    Args:
        label: what is on it.
        parcel: the file.
        say: told when another process is waited for.

    Raises:
        DamagedParcelError: it is not what was sent. The cache is as before.
        InfrastructureError: the disk is full or the cache cannot be written.
    """
    what = f"the {label.kind} {label.key[:12]}"
    size = parcel.seek(0, io.SEEK_END)
    parcel.seek(0)
    if size != label.size or _digest(parcel) != label.digest:
        raise DamagedParcelError(f"{what} was damaged on its way: {size} bytes came, {label.size} were sent")

    def fill(folder: Path) -> dict[str, object]:
        parcel.seek(0)
        try:
            with (
                zstandard.ZstdDecompressor().stream_reader(parcel, closefd=False) as plain,
                tarfile.open(fileobj=plain, mode="r|") as archive,
            ):
                for member in archive:
                    _put(archive, member, folder, label)
        except _BROKEN as error:
            raise DamagedParcelError(f"{what} cannot be unpacked: {error}") from error
        found = cache.digests_of(folder)
        wrong = sorted(name for name in found.keys() | label.files.keys() if found.get(name) != label.files.get(name))
        if wrong:
            raise DamagedParcelError(f"{what} is not what its manifest says: {wrong[0]} differs")
        return label.facts

    return cache.store(label.kind, label.key, fill, say)


def _digest(parcel: BinaryIO) -> str:
    """SHA-256 of a file from where it stands to its end."""
    digest = hashlib.sha256()
    while block := parcel.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, label: Label) -> None:
    """One file or link of the manifest; nothing else, and nothing outside of the folder."""
    path = folder / member.name
    if member.name not in label.files or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{member.name} has no place in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = None if member.issym() else archive.extractfile(member)
    if member.issym():
        path.symlink_to(member.linkname)
    elif content is not None:
        with path.open("wb") as file:
            while block := content.read(1 << 20):
                file.write(block)
        path.chmod(member.mode & 0o755)
