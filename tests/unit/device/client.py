"""A vfio-user client for tests, as QEMU is one: it talks to a real server over a real socket, in the same loop.

async def story() -> None:
    async with served(Model("m")) as (server, client):
        client.map(0x1000, 0x2000)
        await client.write(0, 0x10, (1).to_bytes(4, "little"))

asyncio.run(story())
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harness.device import wire
from harness.device.config import ConfigSpace
from harness.device.model import Model
from harness.device.server import FunctionServer
from harness.device.wire import Access, Command, Flags, Header

PAGE = 4096
CONFIG = 7
SECONDS = 20.0
T = TypeVar("T")


class Reply(NamedTuple):
    """An answer: the errno, 0 without one, and the body."""

    error: int
    body: bytes


class Client:
    """One connection. Requests for DMA are served from :attr:`pages` while :attr:`serving` is true, else held back.

    Attributes:
        pages: memory that the device reaches: page number to bytes and access.
        held: DMA requests that wait for :meth:`serve`.
        asked: every DMA request that came: command, IOVA, bytes.
        closed: set when the server has closed the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.pages: dict[int, tuple[bytearray, int]] = {}
        self.serving = True
        self.held: list[tuple[Header, bytes]] = []
        self.asked: list[tuple[int, int, int]] = []
        self.closed = asyncio.Event()
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._arrived = asyncio.Condition()
        self._next = 0
        self._reading = asyncio.get_running_loop().create_task(self._read())

    # ---- requests

    async def raw(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Send bytes as they are."""
        loop = asyncio.get_running_loop()
        wanted = array.array("i", fds)
        if wanted:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, wanted)]
            data = data[self.sock.sendmsg([data], ancillary) :]
        await loop.sock_sendall(self.sock, data)

    async def send(self, command: int, body: bytes = b"", fds: Iterable[int] = (), flags: int = 0) -> int:
        """Send a request without waiting; gives its id."""
        number, self._next = self._next, (self._next + 1) & 0xFFFF
        self._replies[number] = asyncio.get_running_loop().create_future()
        await self.raw(wire.message(number, command, body, flags=flags), fds)
        return number

    async def reply(self, number: int) -> Reply:
        """The reply to a request."""
        return await within(self._replies[number])

    async def ask(self, command: int, body: bytes = b"", fds: Iterable[int] = ()) -> Reply:
        """Send a request and wait for its reply."""
        return await self.reply(await self.send(command, body, fds))

    async def hello(self) -> Reply:
        """Say the version, as QEMU does."""
        text = b'{"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576}}\0'
        return await self.ask(Command.VERSION, struct.pack("<HH", 0, 0) + text)

    async def read(self, region: int, offset: int, count: int) -> bytes:
        """Read a region."""
        reply = await self.ask(Command.REGION_READ, wire.REGION_ACCESS.pack(offset, region, count))
        assert reply.error == 0, os.strerror(reply.error)
        return reply.body[wire.REGION_ACCESS.size :]

    async def write(self, region: int, offset: int, data: bytes) -> None:
        """Write a region."""
        body = wire.REGION_ACCESS.pack(offset, region, len(data)) + data
        assert (await self.ask(Command.REGION_WRITE, body)).error == 0

    async def get(self, offset: int, size: int = 4, region: int = 0) -> int:
        """Read a register."""
        return int.from_bytes(await self.read(region, offset, size), "little")

    async def put(self, offset: int, value: int, size: int = 4, region: int = 0) -> None:
        """Write a register."""
        await self.write(region, offset, value.to_bytes(size, "little"))

    async def bus_master(self, on: bool = True) -> None:
        """Let the function access memory, or not."""
        await self.write(CONFIG, 4, struct.pack("<H", 0x0406 if on else 0x0402))

    async def interrupts(self, start: int, *fds: int) -> Reply:
        """Have vectors signal eventfds."""
        body = wire.SET_IRQS.pack(wire.SET_IRQS.size, 0x24, 2, start, len(fds))
        return await self.ask(Command.DEVICE_SET_IRQS, body, fds)

    # ---- memory

    async def map(self, iova: int, size: int, access: int = Access.READ | Access.WRITE) -> None:
        """Let the device reach pages, and tell it."""
        for page in range(iova // PAGE, (iova + size) // PAGE):
            self.pages[page] = bytearray(PAGE), access
        assert (await self.ask(Command.DMA_MAP, wire.MAP.pack(wire.MAP.size, access, 0, iova, size))).error == 0

    async def unmap(self, iova: int, size: int) -> None:
        """Take pages away, and tell the device."""
        for page in range(iova // PAGE, (iova + size) // PAGE):
            self.pages.pop(page, None)
        assert (await self.ask(Command.DMA_UNMAP, wire.UNMAP.pack(wire.UNMAP.size, 0, iova, size))).error == 0

    def peek(self, iova: int, size: int) -> bytes:
        """What is in memory."""
        return b"".join(bytes(self.pages[at // PAGE][0][at % PAGE : at % PAGE + n]) for at, n in _cut(iova, size))

    def poke(self, iova: int, data: bytes) -> None:
        """Put bytes into memory."""
        for at, n in _cut(iova, len(data)):
            self.pages[at // PAGE][0][at % PAGE : at % PAGE + n] = data[at - iova : at - iova + n]

    # ---- what the device asks for

    async def arrived(self, count: int) -> None:
        """Wait until so many DMA requests have come in all."""
        async with self._arrived:
            await within(self._arrived.wait_for(lambda: len(self.asked) >= count))

    async def serve(self) -> None:
        """Serve the requests that were held back, and all that come."""
        self.serving = True
        held, self.held = self.held, []
        for head, body in held:
            await self.answer(head, body)

    async def answer(self, head: Header, body: bytes) -> None:
        """Serve a DMA request as QEMU does: all of it, or errno 19."""
        iova, size = wire.DMA_ACCESS.unpack_from(body)
        need = Access.READ if head.command == Command.DMA_READ else Access.WRITE
        nothing = bytearray(), 0
        if not all(self.pages.get(at // PAGE, nothing)[1] & need for at, _ in _cut(iova, size)):
            flags = Flags.REPLY | Flags.ERROR
            await self.raw(wire.message(head.id, head.command, flags=flags, error=errno.ENODEV))
            return
        data = b""
        if head.command == Command.DMA_READ:
            data = self.peek(iova, size)
        else:
            self.poke(iova, body[wire.DMA_ACCESS.size :])
        await self.raw(wire.message(head.id, head.command, body[: wire.DMA_ACCESS.size] + data, flags=Flags.REPLY))

    async def _read(self) -> None:
        try:
            while True:
                head = wire.header(await self._exactly(wire.HEADER.size))
                body = await self._exactly(head.size - wire.HEADER.size)
                if head.flags & Flags.TYPE == Flags.REPLY:
                    self._replies[head.id].set_result(Reply(head.error if head.flags & Flags.ERROR else 0, body))
                    continue
                async with self._arrived:
                    self.asked.append((head.command, *wire.DMA_ACCESS.unpack_from(body)))
                    self._arrived.notify_all()
                if self.serving:
                    await self.answer(head, body)
                else:
                    self.held.append((head, body))
        except (EOFError, ConnectionError):
            for future in self._replies.values():
                if not future.done():
                    future.set_exception(EOFError("the server closed the connection"))
                    future.exception()  # seen: a test need not ask for every reply
            self.closed.set()

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(self.sock, count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    # ---- the end

    async def gone(self) -> None:
        """Wait until the server has closed the connection."""
        await within(self.closed.wait())

    async def close(self) -> None:
        """Go away, in the middle of whatever it is."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self.sock.close()


def _cut(iova: int, size: int) -> Iterable[tuple[int, int]]:
    """The part of a range in each page."""
    at = iova
    while at < iova + size:
        count = min(PAGE - at % PAGE, iova + size - at)
        yield at, count
        at += count


async def within(waiting: Awaitable[T]) -> T:
    """Wait, but not for good."""
    return await asyncio.wait_for(waiting, SECONDS)


async def signalled(event: int) -> int:
    """Wait for an eventfd; gives its count."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(event, lambda: ready.done() or ready.set_result(None))
    try:
        await within(ready)
    finally:
        loop.remove_reader(event)
    return os.eventfd_read(event)


def listening() -> socket.socket:
    """A listening socket at a place of the kernel's choice."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen(4)
    return listener


async def connected(listener: socket.socket) -> Client:
    """A client that has connected, and has said nothing."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(listener.getsockname())
    return Client(sock)


@contextlib.asynccontextmanager
async def served(model: Model, hello: bool = True) -> AsyncIterator[tuple[FunctionServer, Client]]:
    """A model, its server, and a client that is a bus master."""
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    with listening() as listener:
        server = FunctionServer(model, listener, loop)
        client = await connected(listener)
        try:
            if hello:
                assert (await client.hello()).error == 0
                await client.bus_master()
            yield server, client
        finally:
            await client.close()
            server.close()
        assert not problems, "an exception that only the loop saw"


def descriptors() -> dict[str, str]:
    """Every open descriptor of this process and what it is, to see that none is left."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[entry.name] = str(entry.readlink())
    return found


def decode(space: ConfigSpace | Any) -> dict[int, int]:
    """Capability number to its offset, as Linux walks the list."""
    found: dict[int, int] = {}
    at = space.read(0x34, 1)[0]
    while at:
        number, following = space.read(at, 2)
        assert number not in found
        assert at >= 0x40
        assert at % 4 == 0
        found[number] = at
        at = following
    return found
