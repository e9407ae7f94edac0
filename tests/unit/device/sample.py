"""A device for tests: it copies, breaks on demand, and interrupts."""

from __future__ import annotations

import asyncio
import struct
from typing import ClassVar

from harness.device.config import Acs, Identity, Msix, Pcie
from harness.device.dma import DmaError
from harness.device.model import Model
from harness.device.registers import Register

SOURCE, DESTINATION, SIZE, GO, ERROR, BREAK, DONE = 0x00, 0x08, 0x10, 0x14, 0x18, 0x1C, 0x20
COPY, RAISE, WAIT, STUBBORN = 1, 2, 3, 4


class Sample(Model):
    """Copies SIZE bytes from SOURCE to DESTINATION when GO is written.

    Attributes:
        log: what happened to the tasks.
        release: lets a task that waits go on.
        cancelled: a hook asks for the result of a task that a reset has ended.
    """

    identity: ClassVar[Identity] = Identity(
        0x1AF4, 0x10F0, 0xFF0000, revision=3, capabilities=(Pcie(), Msix(vectors=4), Acs())
    )

    def build(self) -> None:
        self.log: list[str] = []
        self.release = asyncio.Event()
        self.cancelled = False
        bar = self.bar(0, 0x4000)
        self.source = bar.add(SOURCE, Register("SOURCE", 8, writable=True))
        self.destination = bar.add(DESTINATION, Register("DESTINATION", 8, writable=True))
        self.size = bar.add(SIZE, Register("SIZE", writable=True, reset=64))
        bar.add(GO, Register("GO", write=self.go))
        self.error = bar.add(ERROR, Register("ERROR"))
        bar.add(BREAK, Register("BREAK", read=self.broken, write=self.breaks))
        self.done = bar.add(DONE, Register("DONE"))

    def go(self, how: int) -> None:
        if how:
            self.start(self.work(how))

    def broken(self) -> int:
        if self.cancelled:
            raise asyncio.CancelledError
        raise LookupError("a hook that reads")

    def breaks(self, value: int) -> None:
        if self.cancelled:
            raise asyncio.CancelledError
        raise LookupError("a hook that writes")

    async def work(self, how: int) -> None:
        self.log.append("begun")
        try:
            if how == RAISE:
                raise ZeroDivisionError("a task that raises")
            if how == WAIT:
                await self.release.wait()
            while how == STUBBORN and not self.release.is_set():
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.log.append("ignored")
            await self.dma.write(self.destination.value, await self.dma.read(self.source.value, self.size.value))
            self.interrupt(0)
        except DmaError as error:
            self.error.value = error.transfer.error
        finally:
            self.log.append("ended")
            self.done.value += 1

    def on_reset(self) -> None:
        self.log.append("reset")
        if self.cancelled:
            raise asyncio.CancelledError


def addresses(source: int, destination: int, size: int) -> bytes:
    """What to write at SOURCE."""
    return struct.pack("<QQI", source, destination, size)
