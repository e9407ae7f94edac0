"""Which physical pages this process's memory lies in, as the kernel says: /proc/self/pagemap."""

from __future__ import annotations

import os

from harness.agent.outcome import StepError
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = PAGE_SIZE
PAGEMAP = "/proc/self/pagemap"
_ENTRY = 8
_AT_ONCE = 4096  # entries, so that a large range needs little memory
_FRAME = (1 << 55) - 1
_PRESENT = 1 << 63


class NotReadable(StepError):
    """The kernel does not show page frame numbers to this process."""


def runs(address: int, size: int, path: str = PAGEMAP) -> list[list[int]]:
    """Return the pages that are present, as pieces of consecutive ones: `[offset, physical address, bytes]`.

    Pages that the process does not have there are in no piece.

    Args:
        address: The first byte, a multiple of 4096.
        size: Bytes, a multiple of 4096.
        path: The file; another one in tests.

    Raises:
        NotReadable: The frame numbers are hidden, as from a process without CAP_SYS_ADMIN.
        OSError: The file cannot be read.
    """
    return _pieces(_entries(address // PAGE, size // PAGE, path))


def _entries(first: int, count: int, path: str) -> Iterable[int]:
    """Give the entry of each page; beyond the end of the address space there are none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for done in range(0, count, _AT_ONCE):
            data = os.pread(fd, min(_AT_ONCE, count - done) * _ENTRY, (first + done) * _ENTRY)
            yield from memoryview(data).cast("Q")
    finally:
        os.close(fd)


def _pieces(entries: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    after = -1  # the frame that would go on with the last piece
    for index, entry in enumerate(entries):
        if not entry & _PRESENT:
            after = -1
            continue
        frame = entry & _FRAME
        if frame == 0:
            raise NotReadable(f"{PAGEMAP} shows no frame numbers: reading them takes CAP_SYS_ADMIN")
        if frame == after:
            found[-1][2] += PAGE
        else:
            found.append([index * PAGE, frame * PAGE, PAGE])
        after = frame + 1
    return found
