"""What comes back of a cell from a worker: its folder and its result."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import zstandard

from harness.errors import InfrastructureError
from harness.qualify.remote.orders import Answer
from harness.results import CellResult


def pack_folder(folder: Path) -> bytes:
    """The files of a folder, which may be missing; what is no file (a socket) is left out.

    Raises:
        OSError: a file cannot be read.
    """
    if not folder.is_dir():
        return b""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_dir() or (path.is_file() and not path.is_symlink()):
                archive.add(path, str(path.relative_to(folder)), recursive=False)
    return zstandard.ZstdCompressor().compress(out.getvalue())


def unpack_folder(data: bytes, folder: Path) -> None:
    """Make a folder of what :func:`pack_folder` gave; nothing for no bytes.

    Args:
        data: the bytes.
        folder: does not exist yet.

    Raises:
        InfrastructureError: it cannot be written, or the bytes are damaged.
    """
    if not data:
        return
    try:
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        folder.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
            for member in archive:
                path = folder / member.name
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise tarfile.TarError(f"{member.name} is outside of it")
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    path.mkdir(exist_ok=True)
                else:
                    path.write_bytes(content.read())
    except (OSError, tarfile.TarError, zstandard.ZstdError) as error:
        raise InfrastructureError(f"the evidence of a worker cannot be kept in {folder}: {error}") from error


def localized(answer: Answer, folder: Path) -> CellResult:
    """A worker's result with its folder's paths replaced by those of ``folder``."""
    result = answer.result

    def here(text: str) -> str:
        return text.replace(answer.folder, str(folder)) if answer.folder else text

    return result.model_copy(
        update={
            "folder": here(result.folder),
            "message": here(result.message),
            "hint": None if result.hint is None else here(result.hint),
            "console_tail": tuple(map(here, result.console_tail)),
        }
    )
