"""DMA of a function: through QEMU, and so through the vIOMMU with the function's requester ID.

A transfer goes in pieces. Where the mirror says that all of a piece is mapped, a piece is long; everywhere else it is a
page, so that the IOMMU's answer is known for each page by itself.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from harness.device.connection import Connection, Gone, Reply
from harness.device.mirror import ALL, Mirror
from harness.device.wire import DMA_ACCESS, PAGE, Access, Command

__all__ = ["LONG", "PAGE", "Dma", "DmaError", "Transfer", "TransferLog"]

LONG: Final = 32 << 10
"""Bytes of the longest piece. QEMU ends when many messages are on their way that do not lie in one socket buffer each,
and 48 KiB, header included, is what Linux puts into one."""

_AT_ONCE: Final = 8  # pieces that are asked for before the first answer
_KEPT: Final = 1000  # transfers without a refusal that the log keeps
_KEPT_REFUSED: Final = 10_000


class DmaError(Exception):
    """The IOMMU, or QEMU, refused a transfer or part of it.

    Args:
        transfer: what was refused.
    """

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        first, size = transfer.refused[0]
        what = f"the {transfer.access_name} of {size} bytes at {first:#x}"
        super().__init__(f"{what} was refused, errno {transfer.error}")

    @property
    def iova(self) -> int:
        """The first IOVA of the first refused piece."""
        return self.transfer.refused[0][0]


@dataclass(slots=True)
class Transfer:
    """One transfer, for the log.

    Args:
        access: READ when the device reads memory.
        iova: where.
        size: bytes.
        bus_master: whether the function was allowed to access memory at all.
        refused: first IOVA and bytes of each piece that was refused.
        error: the errno of the first refusal; 0 without one. ECANCELED where a reset, or the client's end, came first.
        note: what was odd about it on purpose.
        cut: a reset, the client's end, or bus mastering switched off came while it was under way, so how each of its
            pieces ended, and why, is not known.
    """

    access: Access
    iova: int
    size: int
    bus_master: bool
    refused: list[tuple[int, int]] = field(default_factory=list)
    error: int = 0
    note: str = ""
    cut: bool = False

    @property
    def access_name(self) -> str:
        """``read`` or ``write``."""
        return "read" if self.access is Access.READ else "write"

    def as_json(self) -> dict[str, Any]:
        """For the harness."""
        return {
            "access": self.access_name,
            "iova": self.iova,
            "size": self.size,
            "bus_master": self.bus_master,
            "refused": [list(piece) for piece in self.refused],
            "error": errno.errorcode.get(self.error, str(self.error)) if self.error else "",
            "note": self.note,
            "cut": self.cut,
        }


class TransferLog:
    """What a function transferred since it was last asked, up to a bound; those that were refused are kept longest.

    Attributes:
        bytes_read, bytes_written: of transfers that went through.
        errors: how many were refused.
    """

    def __init__(self) -> None:
        self.bytes_read = self.bytes_written = self.errors = 0
        self._good: deque[tuple[int, Transfer]] = deque(maxlen=_KEPT)
        self._bad: deque[tuple[int, Transfer]] = deque(maxlen=_KEPT_REFUSED)
        self._new = 0

    def add(self, transfer: Transfer) -> None:
        """Note a transfer that is over."""
        self._new += 1
        if transfer.refused:
            self.errors += 1
            self._bad.append((self._new, transfer))
            return
        self._good.append((self._new, transfer))
        if transfer.error:
            return
        if transfer.access is Access.READ:
            self.bytes_read += transfer.size
        else:
            self.bytes_written += transfer.size

    def news(self) -> tuple[list[dict[str, Any]], int]:
        """The transfers since it was last asked, oldest first, and how many of them were not kept."""
        found = [transfer.as_json() for _, transfer in sorted([*self._good, *self._bad], key=lambda one: one[0])]
        more, self._new = self._new - len(found), 0
        self._good.clear()
        self._bad.clear()
        return found, more


class Dma:
    """The DMA engine of one function.

    Attributes:
        log: what it did.
        connection: the client; None without one.
    """

    def __init__(self, mirror: Mirror, bus_master: Callable[[], bool]) -> None:
        self.log = TransferLog()
        self.connection: Connection | None = None
        self._mirror = mirror
        self._bus_master = bus_master

    async def read(self, iova: int, size: int, note: str = "") -> bytes:
        """Read memory.

        Args:
            iova: where, any alignment.
            size: bytes, >= 0.
            note: for the log.

        Raises:
            DmaError: it was refused, in whole or in part.
            Gone: there is no client any more.
        """
        transfer = Transfer(Access.READ, iova, size, self._bus_master(), note=note)
        return b"".join(await self._transfer(transfer, memoryview(b"")))

    async def write(self, iova: int, data: bytes, note: str = "") -> None:
        """Write memory; raises as :meth:`read`. What was not refused has been written then."""
        transfer = Transfer(Access.WRITE, iova, len(data), self._bus_master(), note=note)
        await self._transfer(transfer, memoryview(data))

    async def _transfer(self, transfer: Transfer, data: memoryview) -> list[memoryview]:
        connection = self.connection
        if connection is None:
            raise Gone("there is no client")
        if not 0 <= transfer.iova <= transfer.iova + transfer.size <= ALL:
            transfer.refused.append((transfer.iova, transfer.size))
            transfer.error = errno.EFAULT
            self.log.add(transfer)
            raise DmaError(transfer)
        transfer.error, transfer.cut = errno.ECANCELED, True
        try:
            parts = await self._ask(transfer, data, connection)
            # Linux switches bus mastering off before a reset: what is refused from then on has no fault.
            transfer.cut = bool(transfer.refused) and transfer.bus_master and not self._bus_master()
            if not transfer.refused:
                transfer.error = 0
        finally:
            self.log.add(transfer)
        if transfer.refused:
            raise DmaError(transfer)
        return parts

    async def _ask(self, transfer: Transfer, data: memoryview, connection: Connection) -> list[memoryview]:
        """Have the client do all pieces, up to the first that is refused."""
        reads = transfer.access is Access.READ
        command = Command.DMA_READ if reads else Command.DMA_WRITE
        parts: list[memoryview] = []
        pieces = self._pieces(transfer, min(LONG, connection.max_transfer & -PAGE))
        asked: deque[tuple[int, int, asyncio.Future[Reply]]] = deque()
        more = True
        try:
            while True:
                while more and len(asked) < _AT_ONCE and not transfer.refused:
                    piece = next(pieces, None)
                    if piece is None:
                        more = False
                        break
                    iova, size = piece
                    body = DMA_ACCESS.pack(iova, size)
                    if not reads:
                        at = iova - transfer.iova
                        body = b"".join((body, data[at : at + size]))
                    asked.append((iova, size, connection.request(command, body)))
                if not asked:
                    return parts
                iova, size, future = asked.popleft()
                reply = await future
                if reply.error:
                    if not transfer.refused:
                        transfer.error = reply.error
                    transfer.refused.append((iova, size))
                elif reads:
                    head = DMA_ACCESS.pack(iova, size)
                    if len(reply.body) != len(head) + size or not reply.body.startswith(head):
                        what = f"a DMA read of {size} bytes at {iova:#x}"
                        connection.close(f"{len(reply.body)} bytes, or those of another place, in reply to {what}")
                        raise Gone("the client does not keep to the protocol")
                    parts.append(memoryview(reply.body)[DMA_ACCESS.size :])
        finally:
            for _, _, future in asked:
                future.cancel()  # where its reply has come already, nobody wants it

    def _pieces(self, transfer: Transfer, most: int) -> Iterator[tuple[int, int]]:
        """First IOVA and bytes of each piece, at most so many."""
        at, end, access = transfer.iova, transfer.iova + transfer.size, int(transfer.access)
        while at < end:
            size = min(PAGE - at % PAGE, end - at)
            if size < end - at:
                long = min(most - at % most, end - at)
                if self._mirror.covers(at, long, access):
                    size = long
            yield at, size
            at += size
