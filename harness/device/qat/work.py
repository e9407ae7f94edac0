"""The stub at work: requests are taken from one ring and done one after the other, responses go into the other one.

A response is on its way while the next request begins, because QEMU serves messages in the order in which they come.
An interrupt waits until every response has arrived.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from harness.device.dma import Dma, DmaError
from harness.device.qat import layout as q
from harness.device.qat.layout import Cause, Code
from harness.device.qat.memory import StubMemory
from harness.device.qat.misbehave import Misbehaviour
from harness.device.qat.operations import Invalid, parse, perform
from harness.device.qat.ring import Ring
from harness.device.wire import Access


@dataclass(slots=True)
class Counters:
    """What was done since the device was plugged in."""

    requests: int = 0
    responses: int = 0
    interrupts: int = 0
    resets: int = 0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker works with.

    Args:
        dma: the function's DMA engine.
        requests, responses: the rings.
        local: the device's own bytes.
        misbehaviour: what it has been told to do wrong.
        counters: where it counts.
        start: lets something run that a reset ends.
        signal: announces responses to the driver.
        die: the rings cannot be used any more: why, and where.
    """

    dma: Dma
    requests: Ring
    responses: Ring
    local: mmap.mmap
    misbehaviour: Misbehaviour
    counters: Counters
    start: Callable[[Coroutine[Any, Any, None]], None]
    signal: Callable[[], None]
    die: Callable[[Cause, int], None]


class Worker:
    """Does requests until there are none, or the rings that it began with are gone."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lives = parts.requests.life, parts.responses.life
        self._dead = False
        self._arriving: asyncio.Future[None] | None = None
        self._room = asyncio.Event()

    @property
    def _goes_on(self) -> bool:
        """Whether a request may begin and a response be written."""
        requests, responses = self._parts.requests, self._parts.responses
        same = requests.enabled and responses.enabled and self._lives == (requests.life, responses.life)
        return same and not self._dead

    def look(self) -> None:
        """The driver has moved its end of a ring, or disabled one."""
        self._room.set()

    def end(self) -> None:
        """The device can do nothing more until a reset; the request that it is at comes to its end."""
        self._dead = True
        self._room.set()

    async def run(self) -> None:
        """Work; at the end, an interrupt for the last responses. Not before they have arrived: the device is busy."""
        requests = self._parts.requests
        while self._goes_on and not requests.empty:
            if not await self._announced():
                break
            if requests.empty:
                await self._arrived()
        await self._arrived()
        if self._goes_on:
            self._parts.signal()

    async def _announced(self) -> bool:
        """Do the requests that have been announced so far; False when the worker cannot go on."""
        requests = self._parts.requests
        entries, refused = await self._fetch(*requests.waiting())
        for at in range(0, len(entries), q.REQUEST_SIZE):
            if not self._goes_on or not await self._one(entries[at : at + q.REQUEST_SIZE]):
                return False
            requests.taken()
        if refused is not None:
            self._die(Cause.REQUEST_RING_REFUSED, refused)
        return refused is None

    async def _fetch(self, address: int, size: int) -> tuple[bytes, int | None]:
        """Read requests up to the first that cannot be read; gives them, and the IOVA that was refused, or None."""
        refused = None
        while size:
            try:
                return await self._parts.dma.read(address, size), refused
            except DmaError as error:
                refused = error.iova
                size = (refused - address) // q.REQUEST_SIZE * q.REQUEST_SIZE
        return b"", refused

    async def _one(self, entry: bytes) -> bool:
        """Do a request and say how it ended; False when the worker cannot go on."""
        parts = self._parts
        parts.counters.requests += 1
        plan = parts.misbehaviour.take()
        if plan.how == "stop_answering":
            await parts.misbehaviour.forever()
        request = parse(entry)
        code, result, address = Code.DONE, 0, 0
        try:
            result = await perform(request, StubMemory(parts.dma, plan, parts.misbehaviour), parts.local)
        except DmaError as error:
            refused_read = error.transfer.access is Access.READ
            code, address = (Code.READ_REFUSED if refused_read else Code.WRITE_REFUSED), error.iova
        except Invalid as error:
            code, result = Code.INVALID, error.reason
        parts.misbehaviour.remember()
        response = q.RESPONSE.pack(code, 0, result, address, request.opaque)
        for _ in range(2 if plan.how == "complete_twice" else 1):
            if not await self._respond(response):
                return False
        if plan.how == "lose_interrupt":
            parts.misbehaviour.lose_interrupt = True
        return True

    # ---- responses

    async def _respond(self, response: bytes) -> bool:
        """Send a response once there is room; False when there will be none."""
        ring = self._parts.responses
        await self._arrived()
        while self._goes_on and ring.full:
            # The driver may wait for the interrupt before it takes what is there.
            self._parts.signal()
            self._room.clear()
            await self._room.wait()
        if not self._goes_on:
            return False
        arriving = self._arriving = asyncio.get_running_loop().create_future()
        self._parts.start(self._send(ring.send(), response, arriving))
        await asyncio.sleep(0)  # it goes out now, before what the next request asks for
        return self._goes_on

    async def _send(self, address: int, response: bytes, arriving: asyncio.Future[None]) -> None:
        try:
            await self._parts.dma.write(address, response)
        except DmaError as error:
            self._die(Cause.RESPONSE_RING_REFUSED, error.iova)
        else:
            if self._goes_on:
                self._parts.responses.arrived()
            self._parts.counters.responses += 1
        finally:
            if not arriving.done():
                arriving.set_result(None)

    async def _arrived(self) -> None:
        """Wait until the last response is in memory, or has been refused."""
        if self._arriving is not None:
            await self._arriving
            self._arriving = None

    def _die(self, cause: Cause, address: int) -> None:
        self._parts.die(cause, address)
        self.end()
