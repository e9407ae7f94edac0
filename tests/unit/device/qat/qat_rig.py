"""A stub behind a client, with rings set up, and a driver's few lines; written from docs/qat-device.md."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.device.qat.stub import QatPf
from harness.device.wire import DMA_ACCESS, REGION_ACCESS, Command, Flags, message

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from client import Client, served, within

REQUESTS, RESPONSES, LISTS, DATA = 0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000
STATUS, ERROR, ERROR_ADDRESS = 0x08, 0x14, 0x18
CONFIG, LBASE, UBASE, HEAD, TAIL, EMPTY_RINGS, INTERRUPTS = 0x1000, 0x1040, 0x1080, 0x10C0, 0x1100, 0x114C, 0x117C
STARTED_REQUESTS, SENT_RESPONSES, SENT_INTERRUPTS = 0x40, 0x48, 0x68
NOP, COPY, FILL, CRC32, COMPARE, LOAD, STORE = range(7)
DONE, READ_REFUSED, WRITE_REFUSED, INVALID = range(4)
SOURCE_LIST, DESTINATION_LIST = 1, 2
EMPTY = b"\x7f" * 32


class Answer(NamedTuple):
    """A response."""

    code: int
    result: int
    address: int
    opaque: int


class Rig:
    """A client with rings.

    Attributes:
        client: the client.
        model: the stub.
    """

    def __init__(self, client: Client, model: QatPf) -> None:
        self.client, self.model = client, model
        self._tail = self._head = 0
        self._entries = 0
        self._list = LISTS

    async def rings(self, log2: int = 4) -> None:
        """Set the rings up; their memory is mapped already."""
        self._entries, self._tail, self._head = 1 << log2, 0, 0
        self.client.poke(RESPONSES, EMPTY * self._entries)
        for ring, base in ((0, REQUESTS), (1, RESPONSES)):
            for register, value in ((LBASE, base), (UBASE, 0), (HEAD, 0), (TAIL, 0), (CONFIG, 1 << 31 | log2)):
                await self.client.put(register + 4 * ring, value)

    def put(self, request: bytes) -> None:
        """Put 64 bytes into the request ring, and do not tell."""
        self.client.poke(REQUESTS + self._tail, request)
        self._tail = (self._tail + 64) % (64 * self._entries)

    async def ring(self) -> None:
        """Tell of the requests."""
        await self.client.put(TAIL, self._tail)

    async def read_and_write(self, *writes: tuple[int, int]) -> None:
        """Announce a request, and have the device read it with writes of registers right behind, in one piece.

        So these come before whatever the device does next. DMA is held back from then on.
        """
        client = self.client
        client.serving = False
        await self.ring()
        await client.arrived(1)
        head, body = client.held.pop()
        body = body[: DMA_ACCESS.size] + client.peek(REQUESTS, 64)
        parts = [message(head.id, head.command, body, flags=Flags.REPLY)]
        numbers = range(60000, 60000 + len(writes))
        for number, (register, value) in zip(numbers, writes, strict=True):
            client._replies[number] = asyncio.get_running_loop().create_future()
            body = REGION_ACCESS.pack(register, 0, 4) + value.to_bytes(4, "little")
            parts.append(message(number, Command.REGION_WRITE, body))
        await client.raw(b"".join(parts))
        for number in numbers:
            assert (await client.reply(number)).error == 0

    async def take(self, *, tell: bool = True) -> Answer:
        """Wait for a response and take it."""
        place = RESPONSES + self._head

        async def come() -> None:
            while self.client.peek(place, 4) == EMPTY[:4] or self.client.peek(place + 28, 4) == EMPTY[:4]:
                await asyncio.sleep(0)

        await within(come())
        code, reserved, *rest = struct.unpack("<IIQQQ", self.client.peek(place, 32))
        assert reserved == 0
        self.client.poke(place, EMPTY)
        self._head = (self._head + 32) % (32 * self._entries)
        if tell:
            await self.client.put(HEAD + 4, self._head)
        return Answer(code, *rest)

    async def do(self, request: bytes) -> Answer:
        """Have one request done."""
        self.put(request)
        await self.ring()
        return await self.take()

    def listed(self, pieces: Sequence[tuple[int, int]]) -> int:
        """Write a scatter list; gives its address, which is odd."""
        data = struct.pack("<QII", 0, len(pieces), 0)
        data += b"".join(struct.pack("<IIQ", size, 0, address) for address, size in pieces)
        place, self._list = self._list + 1, self._list + len(data) + 1
        self.client.poke(place, data)
        return place

    async def idle(self) -> None:
        """Wait until the device is not busy."""

        async def rest() -> None:
            while await self.client.get(STATUS) & 2:
                await asyncio.sleep(0)

        await within(rest())

    async def flr(self) -> None:
        """Function Level Reset by configuration space, as Linux does it: bus mastering off, reset, on again."""
        await self.client.bus_master(False)
        pcie = next(at for at in range(0x40, 0x100, 4) if self.model.config.read(at, 1) == b"\x10")
        await self.client.write(7, pcie + 8, struct.pack("<H", 1 << 15))
        await self.client.bus_master()


def request(
    opcode: int,
    source: tuple[int, int] = (0, 0),
    destination: tuple[int, int] = (0, 0),
    operand: int = 0,
    flags: int = 0,
    opaque: int = 7,
) -> bytes:
    """The 64 bytes of a request."""
    return struct.pack(
        "<BBHIQQIIQQ16x", opcode, flags, 0, 0, source[0], destination[0], source[1], destination[1], operand, opaque
    )


def pending(event: int) -> int:
    """How often an eventfd was signalled since it was last asked."""
    try:
        return os.eventfd_read(event)
    except BlockingIOError:
        return 0


def tell(story: Callable[[Rig], Coroutine[Any, Any, None]], *, log2: int = 4, data: int = 0x10_0000) -> None:
    """Run a story on a fresh stub; `data` bytes are mapped at DATA."""

    async def whole() -> None:
        model = QatPf("qat")
        async with served(model) as (_, client):
            for base, size in ((REQUESTS, 0x10_0000), (RESPONSES, 0x8_0000), (LISTS, 0x1_0000), (DATA, data)):
                await client.map(base, size)
            rig = Rig(client, model)
            await rig.rings(log2)
            await story(rig)
            assert model.failure is None

    asyncio.run(whole())
