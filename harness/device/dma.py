"""DMA of a function: through QEMU, and so through the vIOMMU with the function's requester ID.

A transfer goes in pieces. Where the mirror says that all of a piece is mapped, a piece is long; everywhere else it is a
page, so that the IOMMU's answer is known for each page by itself.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from harness.device.connection import Connection, Gone
from harness.device.mirror import Mirror
from harness.device.wire import DMA_ACCESS, Access, Command, Flags

PAGE: Final = 4096
LONG: Final = 32 << 10
"""Bytes of the longest piece."""

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
        error: the errno of the first refusal; 0 without one.
        note: what was odd about it on purpose.
    """

    access: Access
    iova: int
    size: int
    bus_master: bool
    refused: list[tuple[int, int]] = field(default_factory=list)
    error: int = 0
    note: str = ""

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
        }


class TransferLog:
    """The last transfers of a function; those that were refused are kept longest.

    Attributes:
        bytes_read, bytes_written: of transfers that were not refused.
        errors: how many were refused.
    """

    def __init__(self) -> None:
        self.bytes_read = self.bytes_written = self.errors = 0
        self._good: deque[tuple[int, Transfer]] = deque(maxlen=_KEPT)
        self._bad: deque[tuple[int, Transfer]] = deque(maxlen=_KEPT_REFUSED)
        self._number = self._told = 0

    def add(self, transfer: Transfer) -> None:
        """Note a transfer that is over."""
        self._number += 1
        if transfer.refused:
            self.errors += 1
            self._bad.append((self._number, transfer))
            return
        self._good.append((self._number, transfer))
        if transfer.access is Access.READ:
            self.bytes_read += transfer.size
        else:
            self.bytes_written += transfer.size

    def news(self) -> tuple[list[dict[str, Any]], int]:
        """The transfers since it was last asked, oldest first, and how many of them are not kept."""
        found = sorted([*self._good, *self._bad], key=lambda one: one[0])
        told, self._told = self._told, self._number
        since = [transfer.as_json() for number, transfer in found if number > told]
        return since, self._number - told - len(since)


class Dma:
    """The DMA engine of one function.

    Attributes:
        log: what it did.
    """

    def __init__(self, mirror: Mirror, bus_master: Callable[[], bool]) -> None:
        self.log = TransferLog()
        self.connection: Connection | None = None
        self._mirror = mirror
        self._bus_master = bus_master

    async def read(self, iova: int, size: int, note: str = "") -> bytes:
        """Read memory.

        Args:
            iova: where.
            size: bytes, >= 0.
            note: for the log.

        Raises:
            DmaError: it was refused, in whole or in part.
            Gone: there is no client any more.
        """
        transfer = Transfer(Access.READ, iova, size, self._bus_master(), note=note)
        parts = await self._transfer(transfer, b"")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, iova: int, data: bytes, note: str = "") -> None:
        """Write memory; raises as :meth:`read`. What was not refused has been written then."""
        transfer = Transfer(Access.WRITE, iova, len(data), self._bus_master(), note=note)
        await self._transfer(transfer, data)

    async def _transfer(self, transfer: Transfer, data: bytes) -> list[bytes]:
        connection = self.connection
        if connection is None:
            raise Gone("there is no client")
        parts: list[bytes] = []
        command = Command.DMA_READ if transfer.access is Access.READ else Command.DMA_WRITE
        pieces = deque(self._pieces(transfer))
        asked: deque[tuple[int, int, asyncio.Future[Any]]] = deque()
        try:
            while pieces or asked:
                while pieces and len(asked) < _AT_ONCE and not transfer.refused:
                    iova, size = pieces.popleft()
                    at = iova - transfer.iova
                    body = DMA_ACCESS.pack(iova, size) + (data[at : at + size] if data else b"")
                    asked.append((iova, size, connection.request(command, body)))
                if not asked:
                    break
                iova, size, future = asked.popleft()
                answer, reply = await future
                if answer.flags & Flags.ERROR:
                    transfer.refused.append((iova, size))
                    transfer.error = transfer.error or answer.error
                elif transfer.access is Access.READ:
                    parts.append(reply[DMA_ACCESS.size :])
        finally:
            for _, _, future in asked:
                future.cancel()
        self.log.add(transfer)
        if transfer.refused:
            raise DmaError(transfer)
        return parts

    def _pieces(self, transfer: Transfer) -> Iterable[tuple[int, int]]:
        """First IOVA and bytes of each piece."""
        at, end = transfer.iova, transfer.iova + transfer.size
        while at < end:
            size = min(LONG - at % LONG, end - at)
            if size <= PAGE or not self._mirror.covers(at, size, transfer.access):
                size = min(PAGE - at % PAGE, size)
            yield at, size
            at += size
