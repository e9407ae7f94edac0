"""Initramfs archives (cpio, "newc"): the same tree always gives the same bytes."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

_ALIGN = 4


class NewcWriter:
    """Writes entries with fixed times and owners and inode numbers in order.

    Args:
        out: where the archive goes.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0

    def entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Write one entry.

        Args:
            name: path without a leading slash.
            mode: file type and permissions, as in ``st_mode``.
            data: a file's content, or a link's target.
            device: major and minor number of a device node.
        """
        path = name.encode() + b"\0"
        self._inode += 1
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        self._write(b"070701" + b"".join(b"%08X" % number for number in numbers) + path)
        self._write(data)

    def finish(self) -> None:
        """Write the end mark."""
        self.entry("TRAILER!!!", 0)

    def _write(self, data: bytes) -> None:
        padded = data + b"\0" * (-len(data) % _ALIGN)
        self._out.write(padded)


def write_tree(root: Path, out: BinaryIO) -> None:
    """Write a folder tree, sorted by name, files with 0644 or 0755, plus the console's device node.

    Args:
        root: the tree; folders, files and symbolic links.
        out: where the archive goes.
    """
    writer = NewcWriter(out)
    _walk(root, "", writer)
    writer.entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    writer.finish()


def _walk(folder: Path, prefix: str, writer: NewcWriter) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        where = f"{prefix}{path.name}"
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            writer.entry(where, stat.S_IFLNK | 0o777, str(path.readlink()).encode())
        elif stat.S_ISDIR(mode):
            writer.entry(where, stat.S_IFDIR | 0o755)
            _walk(path, f"{where}/", writer)
        else:
            executable = 0o755 if mode & 0o111 else 0o644
            writer.entry(where, stat.S_IFREG | executable, path.read_bytes())
