"""What every device model is made of: configuration space, BARs, DMA, interrupts, reset."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from harness.device.config import ConfigSpace, Identity
from harness.device.connection import Connection, Gone, Refused
from harness.device.dma import Dma
from harness.device.mirror import Mirror
from harness.device.registers import Bar


class Model:
    """A PCI function. A device is a subclass with an :attr:`identity` that makes its BARs in :meth:`build`.

    Attributes:
        name: its name, for messages.
        identity: what it says it is.
        config: its configuration space.
        bars: its BARs by index; all are of 64 bits, so the indexes are 0, 2 and 4.
        mirror: what the IOMMU lets it reach.
        dma: its DMA engine.
    """

    identity: ClassVar[Identity]

    def __init__(self, name: str) -> None:
        self.name = name
        self.bars: dict[int, Bar] = {}
        self.mirror = Mirror()
        self.build()
        self.config = ConfigSpace(self.identity, {index: bar.size for index, bar in self.bars.items()})
        self.config.on_flr = self._flr
        self.dma = Dma(self.mirror, lambda: self.config.bus_master)
        self._interrupts: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: Exception | None = None

    # ---- for subclasses

    def build(self) -> None:
        """Make the BARs and their registers; called once."""

    def on_reset(self) -> None:
        """Forget everything; called by every reset, after the tasks have been ended and the registers reset."""

    def bar(self, index: int, size: int) -> Bar:
        """Make a BAR.

        Args:
            index: 0, 2 or 4.
            size: bytes, a power of two, at least 4096.
        """
        self.bars[index] = Bar(size)
        return self.bars[index]

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Let the device do something by itself, which a reset ends.

        What a register's ``write`` starts so may use DMA. An exception other than the client's end is kept in
        :attr:`failure`.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Gone) and self.failure is None:
            self.failure = error if isinstance(error, Exception) else RuntimeError(repr(error))

    def interrupt(self, vector: int) -> bool:
        """Signal an interrupt; tells whether the driver has it switched on."""
        fd = self._interrupts.get(vector)
        if fd is not None:
            os.eventfd_write(fd, 1)
        return fd is not None

    # ---- for the server

    def reset(self) -> None:
        """End what it does, and begin anew; mappings and interrupts are the client's and stay."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        for bar in self.bars.values():
            bar.reset()
        self.on_reset()

    def _flr(self) -> None:
        """Function Level Reset: the driver writes configuration space anew afterwards."""
        self.reset()
        self.config.reset()

    def attached(self, connection: Connection) -> None:
        """A client has come."""
        self.dma.connection = connection

    def detached(self) -> None:
        """The client has gone: nothing of it stays."""
        self.dma.connection = None
        self.reset()
        self.config.reset()
        self.mirror.clear()
        self.set_interrupts(0, self.identity.vectors, [])

    def set_interrupts(self, start: int, count: int, fds: list[int]) -> None:
        """Switch interrupts on or off.

        Args:
            start: the first vector.
            count: how many.
            fds: an eventfd for each, which are taken out of the list; or none, which switches them off.

        Raises:
            Refused: there are no such vectors, or another number of descriptors.
        """
        if start + count > self.identity.vectors or (fds and len(fds) != count):
            raise Refused(errno.EINVAL, f"{count} interrupts from {start} with {len(fds)} descriptors")
        for vector in range(start, start + count):
            old = self._interrupts.pop(vector, None)
            if old is not None:
                os.close(old)
        for vector in range(start, start + len(fds)):
            self._interrupts[vector] = fds.pop(0)

    def region(self, index: int) -> tuple[int, Callable[[int, int], bytes], Callable[[int, bytes], None]] | None:
        """Size, read and write of a BAR; None when there is no such BAR."""
        bar = self.bars.get(index)
        return None if bar is None else (bar.size, bar.read, bar.write)
