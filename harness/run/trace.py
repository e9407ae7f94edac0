"""QEMU's own log, read as it grows."""

from __future__ import annotations

from pathlib import Path

from harness.fault import without_translations


class TraceReader:
    """Gives the lines that QEMU has added to its log since the last time.

    Args:
        path: the log, an existing file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size

    def new_lines(self) -> tuple[str, ...]:
        """Whole lines only, but those of no use to anybody.

        QEMU writes line by line before a DMA is reported as done.
        """
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return without_translations(whole.decode("utf-8", errors="replace").splitlines())
