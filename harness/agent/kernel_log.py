"""The kernel's log since a point in time, by /dev/kmsg: nothing is missed and nothing is read twice."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RECORD = 16 * 1024  # a smaller buffer than the record makes the kernel refuse the read
LOST = "harness: the kernel log was overrun, lines are missing"


def decode(text: bytes) -> str:
    r"""Undo the kernel's escapes: `\x0a` and the like for every byte that is not printable, and for the backslash."""
    head, *rest = text.split(b"\\x")
    out = bytearray(head)
    for part in rest:
        try:
            out.append(int(part[:2], 16))
            out += part[2:]
        except ValueError:
            out += b"\\x" + part
    return out.decode("utf-8", errors="replace")


def parse(record: bytes) -> tuple[str, list[str]]:
    """Read one record: `priority,sequence,microseconds,flags;text`, then lines ` KEY=value` that are left out.

    Returns:
        The time as the kernel prints it, `    4.123456`, and the lines of the text.
    """
    head, _, rest = record.partition(b";")
    fields = head.split(b",")
    micros = int(fields[2]) if len(fields) > 2 and fields[2].isdigit() else 0
    text = rest.partition(b"\n")[0]
    return f"{micros // 1_000_000:5d}.{micros % 1_000_000:06d}", decode(text).split("\n")


class KernelLog:
    """Collects the log's lines.

    Args:
        fd: A descriptor that gives one record a read and does not block.
        write: Writes a line to the log.
    """

    def __init__(self, fd: int, write: Callable[[str], None]) -> None:
        self._fd = fd
        self._write = write
        self._lines: list[str] = []
        self._marks: dict[str, int] = {}
        self._time = f"{0:5d}.{0:06d}"

    @classmethod
    def open(cls, path: str = "/dev/kmsg") -> KernelLog:
        """Open the log at its end; raises `OSError`."""

        def write(text: str) -> None:
            # A descriptor of its own for each: the kernel drops what exceeds ten lines in five seconds through one.
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"<6>" + text.encode() + b"\n")
            finally:
                os.close(fd)

        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(fd, 0, os.SEEK_END)  # reading the boot's hundreds of records would cost the guest 0.1 s
        return cls(fd, write)

    def mark(self) -> str:
        """Write a line of our own, read the log up to it, and return it."""
        marker = f"harness: mark {os.getpid()}.{len(self._marks) + 1}"
        self._marks[marker] = -1
        self._write(marker)
        self._read(marker)
        self._marks[marker] = len(self._lines)
        return marker

    def since(self, marker: str | None) -> list[str]:
        """Return the lines after a mark, up to now, without our own.

        Args:
            marker: What `mark` returned; None for all since the log was opened.

        Raises:
            KeyError: There is no such mark.
        """
        start = 0 if marker is None else self._marks[marker]
        self.mark()
        return self._lines[start:]

    def _read(self, marker: str) -> None:
        """Take in the records up to a mark.

        A write is in the log before it returns, so what was said before it has been read when the log is at its end,
        even should the kernel have dropped the mark.
        """
        while True:
            try:
                record = os.read(self._fd, _RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._lines.append(f"[{self._time}] {LOST}")
                continue
            if not record:
                return
            self._time, lines = parse(record)
            if lines == [marker]:
                return
            if lines[0] not in self._marks:
                self._lines += [f"[{self._time}] {line}" for line in lines]
