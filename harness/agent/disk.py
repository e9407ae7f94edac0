"""Reads and writes of a disk without the page cache (O_DIRECT): the kernel's driver gets the program's own pages.

Memory is taken anew for each: pieces that lie somewhere in it, in any order, and are one request of the program.
"""

from __future__ import annotations

import mmap
import os

# What `random` wraps; its import would cost the guest tens of milliseconds.
from _random import Random

from harness.agent import patterns
from harness.agent.outcome import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class DiskError(StepError):
    """The kernel did not read, or write, what it was asked for."""


class Shape:
    """Where the pieces of a request lie in memory.

    Attributes:
        piece: Bytes of each.
        pieces: How many.
        stride: Bytes from the start of one to that of its neighbour.
        offset: Bytes before the first one in its page.
        scattered: The disk's order is not the memory's.
    """

    __slots__ = ("offset", "piece", "pieces", "scattered", "stride")

    def __init__(self, piece: int, pieces: int = 1, stride: int = 0, offset: int = 0, scattered: bool = False) -> None:
        self.piece = piece
        self.pieces = pieces
        self.stride = stride or piece
        self.offset = offset
        self.scattered = scattered

    @property
    def size(self) -> int:
        """Bytes of memory from the first page on."""
        return self.offset + self.stride * (self.pieces - 1) + self.piece

    def places(self) -> list[int]:
        """Return where each piece begins, in the order of the disk."""
        order = list(range(self.pieces))
        if self.scattered:
            made = Random(self.pieces)
            order.sort(key=lambda _: made.random())
        return [self.offset + self.stride * index for index in order]


def transfer(path: str, at: int, shape: Shape, seed: int, *, read: bool, write: bool) -> int | None:
    """Write a pattern to a disk, read it back into other memory, or both.

    Args:
        path: The block device.
        at: Where on the disk, in bytes.
        shape: The pieces of memory; together whole sectors.
        seed: Of the pattern.
        read: It is read, and compared with the pattern; without `write` it must be there.
        write: It is written.

    Returns:
        The first byte of the memory that is not as it must be, those between the pieces too; None when all are.

    Raises:
        DiskError: The kernel refused, or did less.
    """
    total = shape.piece * shape.pieces
    data = b"".join(block for _, block in patterns.chunks("random", seed, 0, total))
    wanted = bytearray(shape.size)
    for index, place in enumerate(shape.places()):
        wanted[place : place + shape.piece] = data[index * shape.piece : (index + 1) * shape.piece]
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        if write:
            with mmap.mmap(-1, shape.size) as memory:
                memory[:] = bytes(wanted)
                _whole(os.pwritev, fd, memory, at, shape, "written")
        if not read:
            return None
        with mmap.mmap(-1, shape.size) as memory:
            # Each page is the program's own before the device writes to it, not the page of zeros that all share.
            memory[:] = bytes(shape.size)
            _whole(os.preadv, fd, memory, at, shape, "read")
            return patterns.first_difference(memory[:], bytes(wanted))
    finally:
        os.close(fd)


def _whole(
    call: Callable[[int, list[memoryview], int], int], fd: int, memory: mmap.mmap, at: int, shape: Shape, done: str
) -> None:
    with memoryview(memory) as view:
        pieces = [view[place : place + shape.piece] for place in shape.places()]
        try:
            count = call(fd, pieces, at)
        except OSError as error:
            raise DiskError(f"{shape.pieces} pieces of {shape.piece} bytes not {done}: {error.strerror}") from error
        finally:
            for piece in pieces:
                piece.release()
    if count != shape.piece * shape.pieces:
        raise DiskError(f"{count} bytes {done} of {shape.piece * shape.pieces}")
