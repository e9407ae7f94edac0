"""The real model of the QAT-like device behind the interface of `usdm.vfio.Device`: a client in a thread plays QEMU."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from fake_nvme import FakeContainer

from harness.agent import qat_layout as q
from harness.agent.qat import Qat
from harness.device import wire
from harness.device.qat.misbehave import Plan
from harness.device.qat.stub import QatPf
from harness.device.wire import Command, Flags, Header
from usdm import vfio_uapi as uapi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))
from client import Client, served

T = TypeVar("T")
_SECONDS = 20.0
PAGE, IOVA = 4096, 0x4000_0000


class FakeQat:
    """A device, a BAR and its registers at once.

    Attributes:
        model: The model.
        container: Its mappings are the memory that the model reaches.
        gone: The device does not answer.
        reads: What its registers read as then.
        writes: Indexes of the registers that were written, and the values.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, client: Client, model: QatPf, container: FakeContainer) -> None:
        self.bdf, self.fd = "02:00.0", 77
        self.model, self.container = model, container
        self.gone = self.closed = False
        self.reads = 0xFFFF_FFFF
        self.writes: list[tuple[int, int]] = []
        self._loop, self._client = loop, client
        client.answer = self._answer  # type: ignore[method-assign]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    async def _answer(self, head: Header, body: bytes) -> None:
        iova, size = wire.DMA_ACCESS.unpack_from(body)
        start, data = body[: wire.DMA_ACCESS.size], b""
        refused = not self.model.config.bus_master
        if head.command == Command.DMA_READ:
            found = self.container.read(iova, size)
            refused, data = refused or found is None, found or b""
        elif not refused:
            refused = not self.container.write(iova, body[wire.DMA_ACCESS.size :])
        if refused:
            out = wire.message(head.id, head.command, flags=Flags.REPLY | Flags.ERROR, error=errno.ENODEV)
        else:
            out = wire.message(head.id, head.command, start + data, flags=Flags.REPLY)
        await self._client.raw(out)

    # ---- the device

    def set_bus_master(self, enabled: bool) -> None:
        self._run(self._client.bus_master(enabled))

    def read(self, index: int, offset: int, size: int) -> bytes:
        assert index == uapi.PCI_CONFIG_REGION
        return b"\xff" * size if self.gone else self._run(self._client.read(index, offset, size))

    def map_region(self, index: int) -> FakeQat:
        assert index == uapi.PCI_BAR0_REGION
        return self

    def set_irqs(self, index: int, eventfds: list[int]) -> None:
        assert index == uapi.PCI_MSIX_IRQ
        assert self._run(self._client.interrupts(0, *eventfds)).error == 0

    def reset(self) -> None:
        async def resetting() -> None:
            await self._client.ask(Command.DEVICE_RESET)
            await self._client.bus_master()

        self._run(resetting())

    def close(self) -> None:
        self.closed = True

    # ---- its registers

    def __getitem__(self, index: int) -> int:
        return self.reads if self.gone else self._run(self._client.get(4 * index))

    def __setitem__(self, index: int, value: int) -> None:
        self.writes.append((index, value))
        if not self.gone:
            self._run(self._client.put(4 * index, value))

    def release(self) -> None:
        pass


@contextmanager
def plugged_in(monkeypatch: Any) -> Iterator[tuple[Qat, FakeQat]]:
    """An open device that is a bus master, and its driver."""
    monkeypatch.setattr("harness.agent.mapped.words_of", lambda bar, items: bar)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    model, shared = QatPf("qat"), SimpleNamespace()
    done = asyncio.Event()

    async def serve() -> None:
        async with served(model) as (server, client):
            shared.server, shared.client = server, client
            shared.ready.set()
            await done.wait()

    shared.ready = threading.Event()
    serving = asyncio.run_coroutine_threadsafe(serve(), loop)
    try:
        assert shared.ready.wait(_SECONDS)
        fake = FakeQat(loop, shared.client, model, FakeContainer())
        driver = Qat(fake, fake.container)  # type: ignore[arg-type]
        fake.set_bus_master(True)
        try:
            yield driver, fake
        finally:
            driver.close()
    finally:
        loop.call_soon_threadsafe(done.set)
        serving.result(_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS)
        loop.close()


class Rig:
    """A driver, its device, and 64 KiB of memory at IOVA."""

    def __init__(self, driver: Qat, fake: FakeQat) -> None:
        self.driver, self.fake = driver, fake
        self.memory = mmap.mmap(-1, 16 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        fake.container.map_dma(address, IOVA, len(self.memory))

    def nop(self, **more: bool) -> int:
        return self.driver.submit(q.NOP, **more)  # type: ignore[arg-type]

    def plan(self, how: str, times: int = 1, *, milliseconds: int = 0) -> None:
        self.fake.model.misbehaviour.add(Plan(how, milliseconds), times)  # type: ignore[arg-type]

    def let_go(self) -> None:
        """Let the request go on that is held."""
        self.fake._run(self.fake.model.misbehaviour.release())

    def rest(self) -> None:
        """Wait until the device is not busy."""
        while self.fake[q.STATUS // 4] & q.BUSY:
            pass


@contextmanager
def rigged(monkeypatch: Any) -> Iterator[Rig]:
    """A driver on its device, which gives everything back at the end."""
    with plugged_in(monkeypatch) as (driver, fake):
        yield Rig(driver, fake)
        assert fake.model.failure is None
    assert fake.closed
    assert not [iova for iova in fake.container.entries if iova != IOVA], "the rings' memory was given back"
