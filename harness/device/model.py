"""What every device model is made of: configuration space, BARs, DMA, interrupts, reset."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, Final

from harness.device.config import ConfigSpace, Identity, Msix
from harness.device.connection import Connection, Gone, Refused
from harness.device.dma import Dma
from harness.device.mirror import Mirror
from harness.device.registers import Bar
from harness.device.telling import tell

_EVENTFD: Final = "anon_inode:[eventfd]"
_SETTLE_SECONDS: Final = 1.0  # QEMU waits 5 s for a reply
_MOST_TOLD: Final = 100  # exceptions: a guest may read a register that raises one all day long


class Model:
    """A PCI function. A device is a subclass with an :attr:`identity` that makes its BARs in :meth:`build`.

    Attributes:
        name: its name, for messages.
        identity: what it says it is.
        config: its configuration space.
        bars: its BARs by index; all are of 64 bits, so the indexes are 0, 2 and 4.
        mirror: what the IOMMU lets it reach.
        dma: its DMA engine.
        failure: the first exception that the model's own code raised; None without one.
        on_settling: called with True when a reset has begun to end tasks, and with False when they have ended.
    """

    identity: ClassVar[Identity]

    def __init__(self, name: str) -> None:
        """Make the function; raises ValueError where the class describes one that cannot be."""
        self.name = name
        self.bars: dict[int, Bar] = {}
        self.mirror = Mirror()
        self.dma = Dma(self.mirror, lambda: self.config.bus_master)
        self.failure: BaseException | None = None
        self.on_settling: Callable[[bool], None] = lambda settling: None
        self._failures = 0
        self._interrupts: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._late: asyncio.TimerHandle | None = None
        self.build()
        self.config = ConfigSpace(self.identity, {index: bar.size for index, bar in self.bars.items()})
        self.config.on_flr = self._flr
        self._check_places()

    def _check_places(self) -> None:
        """QEMU serves the MSI-X table and the pending bits, so a register there would never be reached."""
        msix = self.identity.capability(Msix)
        if isinstance(msix, Msix):
            for name, place in msix.places:
                register = self.bars[msix.bar].first_in(place)
                if register is not None:
                    raise ValueError(f"the register {register} lies in the MSI-X {name} at {place.start:#x}")

    # ---- for subclasses

    def build(self) -> None:
        """Make the BARs and their registers; called once."""

    def on_reset(self) -> None:
        """Forget everything; called by every reset, after the tasks have been told to end and the registers reset.

        A task that it starts belongs to the time after the reset.
        """

    def bar(self, index: int, size: int) -> Bar:
        """Make a BAR.

        Args:
            index: 0, 2 or 4.
            size: bytes, a power of two, at least 4096.

        Raises:
            ValueError: there can be no such BAR, or there is one.
        """
        if index not in (0, 2, 4) or index in self.bars:
            raise ValueError(f"BAR {index}: BARs have 64 bits, so there are 0, 2 and 4, each once")
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
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Gone):
            self.failed(error)
        if task in self._ending:
            self._ending.discard(task)
            if not self._ending:
                self._settled()

    def failed(self, error: BaseException) -> None:
        """Keep the first exception of the model's own code, and say it on stderr, later ones in a line each."""
        self._failures += 1
        if self.failure is None:
            self.failure = error
            text = "".join(traceback.format_exception(error)).rstrip("\n")
            tell(f"{self.name}: the device model raised an exception\n{text}")
        elif self._failures <= _MOST_TOLD:
            last = " (no more of them are told)" * (self._failures == _MOST_TOLD)
            tell(f"{self.name}: the device model raised {error!r}{last}")

    def interrupt(self, vector: int) -> bool:
        """Signal an interrupt; tells whether the driver has it switched on."""
        fd = self._interrupts.get(vector)
        if fd is not None:
            with contextlib.suppress(BlockingIOError):  # so many are pending that one more says nothing
                os.eventfd_write(fd, 1)
        return fd is not None

    # ---- for the server

    @property
    def settling(self) -> bool:
        """Whether tasks that a reset has told to end still have to do so."""
        return bool(self._ending)

    def reset(self) -> None:
        """End what it does, and begin anew; mappings and interrupts are the client's and stay.

        A task is told to end, and ends as soon as the loop comes to it. Until then nothing more is read from the
        client, so what a driver does after the reset finds a device that rests.
        """
        ending, self._tasks = self._tasks, set()  # what on_reset() starts belongs to the new life
        for task in ending:
            task.cancel()
        for bar in self.bars.values():
            bar.reset()
        try:
            self.on_reset()
        except (Exception, asyncio.CancelledError) as error:
            self.failed(error)
        if ending and not self._ending:
            self._late = asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._go_on)
            self.on_settling(True)
        self._ending |= ending

    def _go_on(self) -> None:
        """A task does not end: that is the model's error, and no reason to let the client wait for good."""
        self.failed(RuntimeError(f"{len(self._ending)} tasks of the model go on after a reset"))
        self._ending.clear()
        self._settled()

    def _settled(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self.on_settling(False)

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
            Refused: there are no such vectors, or another number of descriptors, or one is no eventfd.
        """
        if start + count > self.identity.vectors or (fds and len(fds) != count):
            raise Refused(errno.EINVAL, f"{count} interrupts from {start} with {len(fds)} descriptors")
        for fd in fds:
            if str(Path(f"/proc/self/fd/{fd}").readlink()) != _EVENTFD:
                raise Refused(errno.EINVAL, "an interrupt is signalled by an eventfd, and this is none")
        for vector in range(start, start + count):
            old = self._interrupts.pop(vector, None)
            if old is not None:
                os.close(old)
        for vector in range(start, start + len(fds)):
            os.set_blocking(fds[0], False)
            self._interrupts[vector] = fds.pop(0)

    def region(self, index: int) -> tuple[int, Callable[[int, int], bytes], Callable[[int, bytes], None]] | None:
        """Size, read and write of a BAR; None when there is no such BAR."""
        bar = self.bars.get(index)
        return None if bar is None else (bar.size, bar.read, bar.write)
