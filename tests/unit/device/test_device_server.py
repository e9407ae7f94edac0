"""The server of a function, by a client that is sometimes as QEMU is and sometimes not."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import struct

import pytest
from client import CONFIG, Client, connected, descriptors, listening, within
from sample import COPY, DONE, ERROR, GO, SIZE, STUBBORN, Sample, addresses
from telling import still_works, tell

from harness.device import server as server_module
from harness.device import wire
from harness.device.server import FunctionServer
from harness.device.wire import Access, Command, Flags

# ---- the first message


@pytest.mark.parametrize("text", [b"", b"{}", b"{}\0", b'{"capabilities": {}}', b'{"capabilities": {"x": [1]}}\0\0'])
def test_a_version_with_little_in_it_is_taken(text: bytes) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        reply = await client.ask(Command.VERSION, struct.pack("<HH", 0, 7) + text)
        offered = json.loads(reply.body[4:].rstrip(b"\0"))["capabilities"]
        assert reply.body[:4] == bytes(4)
        assert (offered["max_data_xfer_size"], offered["max_msg_fds"], offered["max_dma_maps"]) == (1 << 20, 8, 65535)
        await still_works(client)

    tell(story, hello=False)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "a version of 0 bytes"),
        (b"\0\0\0", "a version of 3 bytes"),
        (struct.pack("<HH", 1, 0), "speaks version 1"),
        (bytes(4) + b"{", "no JSON"),
        (bytes(4) + b"\xff\xfe", "no JSON"),
        (bytes(4) + b"[" * 100_000, "no JSON"),
        (bytes(4) + b"[]", "no JSON object"),
        (bytes(4) + b'{"capabilities": 1}', "no JSON object"),
        (bytes(4) + b'{"capabilities": {"max_data_xfer_size": "x"}}', "max_data_xfer_size 'x'"),
        (bytes(4) + b'{"capabilities": {"max_data_xfer_size": 100}}', "max_data_xfer_size 100"),
        (bytes(4) + b'{"capabilities": {"max_data_xfer_size": "' + b"A" * 100_000 + b'"}}', "AAA..."),
    ],
)
def test_a_version_that_says_nothing_ends_the_connection(body: bytes, why: str) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.send(Command.VERSION, body)
        await client.gone()
        assert why in server.refused[-1]
        assert len(server.refused[-1]) < 400, "a client does not say how much is kept of what it says"
        assert not server.connected

    tell(story, hello=False)


def test_anything_before_the_version_ends_the_connection() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.send(Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 0, 0, 0))
        await client.gone()
        assert "not the version" in server.refused[-1]

    tell(story, hello=False)


# ---- messages that are none


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (wire.HEADER.pack(1, 9, 15, 0, 0), "a message of 15 bytes"),
        (wire.HEADER.pack(1, 9, 0, 0, 0), "a message of 0 bytes"),
        (wire.HEADER.pack(1, 9, 0xFFFF_FFFF, 0, 0), "a message of 4294967295 bytes"),
        (wire.HEADER.pack(1, 9, 16 + wire.MAX_BODY + 1, 0, 0), "bytes"),
        (wire.HEADER.pack(1, 9, 16, 2, 0), "of the type 2"),
        (wire.HEADER.pack(77, 9, 16, 1, 0), "request 77, which nobody made"),
    ],
)
def test_a_message_that_cannot_be_ends_the_connection(data: bytes, why: str) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.raw(data)
        await client.gone()
        assert why in server.refused[-1]

    tell(story)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 31])
def test_a_client_that_goes_away_in_the_middle_of_a_message_makes_room_for_another(cut: int) -> None:
    whole = wire.message(9, Command.REGION_WRITE, wire.REGION_ACCESS.pack(0, 0, 8) + bytes(8))

    async def story(server: FunctionServer, client: Client) -> None:
        read, write = os.pipe()
        await client.raw(whole[:cut], [read])
        os.close(read)
        os.close(write)
        lost = asyncio.Event()
        server.on_lost = lost.set
        await client.close()
        await within(lost.wait())
        assert "closed the connection" in server.refused[-1]
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(server._listener.getsockname())  # type: ignore[union-attr]
        second = Client(sock)
        assert (await second.hello()).error == 0
        await still_works(second)
        await second.close()

    tell(story)


def test_a_message_may_come_a_byte_at_a_time() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        number = await client.send(Command.VERSION)  # refused: it was said; takes the number
        assert (await client.reply(number)).error == errno.ENOSYS
        client._replies[500] = asyncio.get_running_loop().create_future()
        for byte in wire.message(500, Command.REGION_READ, wire.REGION_ACCESS.pack(SIZE, 0, 4)):
            await client.raw(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.reply(500)).body[16:] == (64).to_bytes(4, "little")

    tell(story)


# ---- commands that cannot be done


@pytest.mark.parametrize(
    ("command", "body", "error"),
    [
        (0, b"", errno.ENOSYS),
        (14, b"", errno.ENOSYS),
        (0xFFFF, b"x" * 100, errno.ENOSYS),
        (Command.DEVICE_GET_REGION_IO_FDS, bytes(16), errno.ENOSYS),
        (Command.REGION_WRITE_MULTI, bytes(64), errno.ENOSYS),
        (Command.DMA_READ, bytes(16), errno.ENOSYS),
        (Command.VERSION, bytes(4), errno.ENOSYS),
        (Command.DEVICE_GET_INFO, b"", errno.EINVAL),
        (Command.DEVICE_GET_INFO, bytes(17), errno.EINVAL),
        (Command.DEVICE_GET_REGION_INFO, wire.REGION_INFO.pack(32, 0, 9, 0, 0, 0), errno.EINVAL),
        (Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(16, 0, 5, 0), errno.EINVAL),
        (Command.DEVICE_RESET, b"x", errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(0, 0, 0), errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(0, 0, 4) + b"x", errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(0x3FFD, 0, 4), errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack((1 << 64) - 1, 0, 4), errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(0, 0, 0xFFFF_FFFF), errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(0, 1, 4), errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(0, 0xFFFF_FFFF, 4), errno.EINVAL),
        (Command.REGION_READ, wire.REGION_ACCESS.pack(4095, CONFIG, 2), errno.EINVAL),
        (Command.REGION_WRITE, wire.REGION_ACCESS.pack(0, 0, 4) + b"x", errno.EINVAL),
        (Command.REGION_WRITE, wire.REGION_ACCESS.pack(0, 0, 4) + b"x" * 5, errno.EINVAL),
        (Command.REGION_WRITE, wire.REGION_ACCESS.pack(0, 0, 0), errno.EINVAL),
        (Command.REGION_WRITE, b"", errno.EINVAL),
        (Command.DMA_MAP, wire.MAP.pack(32, 3, 0, 0x1000, 0), errno.EINVAL),
        (Command.DMA_MAP, wire.MAP.pack(32, 3, 0, (1 << 64) - 0x1000, 0x2000), errno.EINVAL),
        (Command.DMA_MAP, wire.MAP.pack(32, 0, 0, 0x1000, 0x1000), errno.EINVAL),
        (Command.DMA_MAP, wire.MAP.pack(32, 7, 0, 0x1000, 0x1000), errno.EINVAL),
        (Command.DMA_MAP, wire.MAP.pack(32, 3, 0, 0x1001, 0x1000), errno.EINVAL),
        (Command.DMA_MAP, wire.MAP.pack(32, 3, 0, 0x1000, 1), errno.EINVAL),
        (Command.DMA_MAP, b"", errno.EINVAL),
        (Command.DMA_UNMAP, wire.UNMAP.pack(24, 1, 0, 0x1000), errno.EINVAL),
        (Command.DMA_UNMAP, wire.UNMAP.pack(24, 0, 0, 0), errno.EINVAL),
        (Command.DMA_UNMAP, wire.UNMAP.pack(24, 0, 0x1800, 0x1000), errno.EINVAL),
        (Command.DMA_UNMAP, wire.UNMAP.pack(24, 0, (1 << 64) - 0x1000, 0x2000), errno.EINVAL),
        (Command.DMA_UNMAP, wire.UNMAP.pack(24, 2, 0x1000, 0x1000), errno.EINVAL),
        (Command.DMA_UNMAP, bytes(25), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, b"", errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x24, 2, 0, 0), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x24, 2, 4, 1), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x24, 2, 0, 0xFFFF_FFFF), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x21, 2, 2, 3), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x22, 2, 0, 1), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x09, 2, 0, 1), errno.EINVAL),
        (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x24, 0, 0, 1), errno.EINVAL),
    ],
)
def test_a_command_that_cannot_be_done_is_refused_and_the_connection_goes_on(
    command: int, body: bytes, error: int
) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        assert await client.ask(command, body) == (error, b"")
        await still_works(client)
        assert server.model.failure is None

    tell(story)


def test_a_reply_that_nobody_wants_is_not_sent() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        silent = await client.send(Command.REGION_READ, bytes(3), flags=Flags.NO_REPLY)
        await still_works(client)
        assert not client._replies[silent].done()

    tell(story)


# ---- descriptors


def test_descriptors_that_nobody_wants_are_closed() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        read, write = os.pipe()
        before = descriptors()
        for command, body in (
            (Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 0, 0, 0)),
            (Command.DMA_MAP, wire.MAP.pack(32, 3, 0, 0x1000, 0x1000)),
            (Command.DMA_MAP, wire.MAP.pack(32, 3, 0, 0x1000, 0x1000)),
            (Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x24, 2, 0, 1)),
            (99, b""),
        ):
            await client.ask(command, body, [read, write])
        assert descriptors() == before
        os.close(read)
        os.close(write)

    tell(story)


def test_more_descriptors_than_may_come_end_the_connection() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        event = os.eventfd(0)
        await client.raw(wire.message(1, Command.DEVICE_SET_IRQS, bytes(20)), [event] * 9)
        await client.gone()
        assert "more descriptors" in server.refused[-1]
        os.close(event)

    tell(story)


def test_descriptors_do_not_gather_by_a_header_that_comes_in_pieces() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        event = os.eventfd(0)
        for byte in wire.message(1, Command.DEVICE_SET_IRQS, bytes(20))[:2]:
            await client.raw(bytes([byte]), [event] * 8)
            await asyncio.sleep(0)
        await client.gone()
        assert "more descriptors" in server.refused[-1]
        os.close(event)

    tell(story)


def test_what_is_no_eventfd_signals_no_interrupt() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        read, write = os.pipe()
        assert (await client.interrupts(0, write)).error == errno.EINVAL
        os.close(read)
        os.close(write)
        assert not server.model.interrupt(0)

    tell(story)


# ---- clients


def test_a_second_client_is_turned_away_and_the_first_goes_on() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        second = await connected(server._listener)  # type: ignore[arg-type]
        await second.gone()
        assert server.refused == ["another client is connected"]
        await second.close()
        await still_works(client)

    tell(story)


def test_a_second_client_that_has_spoken_already_reads_an_end() -> None:
    """Not ECONNRESET, over which QEMU 11.1 fails an assertion."""

    async def story(server: FunctionServer, client: Client) -> None:
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(server._listener.getsockname())  # type: ignore[union-attr]
            second.sendall(wire.message(0, Command.VERSION, bytes(4)))  # before the loop has its turn
            second.setblocking(False)
            assert await within(asyncio.get_running_loop().sock_recv(second, 1)) == b""
        await still_works(client)

    tell(story)


def test_a_client_that_comes_right_after_the_first_has_gone_is_taken() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        # Before the loop has a turn, so that the server hears of the second first.
        second = await connected(server._listener)  # type: ignore[arg-type]
        client.sock.shutdown(socket.SHUT_RDWR)
        assert (await second.hello()).error == 0
        await second.close()

    tell(story)


def test_a_client_that_comes_when_much_of_the_first_has_not_been_read_is_taken() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        second = await connected(server._listener)  # type: ignore[arg-type]
        ask = wire.message(1, Command.REGION_READ, wire.REGION_ACCESS.pack(0, CONFIG, 4), flags=Flags.NO_REPLY)
        client.sock.send(ask * 1000)
        client.sock.shutdown(socket.SHUT_RDWR)
        assert (await second.hello()).error == 0
        assert server.refused == ["the client closed the connection"]
        await second.close()

    tell(story)


def test_a_client_that_went_during_a_reset_makes_room_for_another() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.put(GO, STUBBORN)
        await client.ask(Command.DEVICE_RESET)
        assert server.model.settling
        second = await connected(server._listener)  # type: ignore[arg-type]
        client.sock.shutdown(socket.SHUT_RDWR)
        while not server.refused:
            await asyncio.sleep(0)
        server.model.release.set()  # type: ignore[attr-defined]
        assert (await second.hello()).error == 0
        assert server.refused == ["the client closed the connection"]
        await second.close()

    tell(story)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_client_that_cannot_be_taken_for_now_is_taken_later(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_RETRY_SECONDS", 0.01)

    async def whole() -> None:
        with listening() as listener:
            failing = Failing(listener, error, times=3)
            server = FunctionServer(Sample("s"), failing, asyncio.get_running_loop())  # type: ignore[arg-type]
            client = await connected(listener)
            assert (await client.hello()).error == 0
            assert (failing.tried, server.refused) == (4, [f"no client can be taken for now: {os.strerror(error)}"])
            await client.close()
            server.close()

    asyncio.run(whole())


def test_a_client_that_cannot_be_taken_for_now_is_not_tried_all_the_time() -> None:
    async def whole() -> None:
        with listening() as listener:
            failing = Failing(listener, errno.EMFILE, times=99)
            server = FunctionServer(Sample("s"), failing, asyncio.get_running_loop())  # type: ignore[arg-type]
            client = await connected(listener)
            while not server.refused:
                await asyncio.sleep(0)
            for _ in range(10):  # turns of the loop
                await asyncio.sleep(0)
            assert failing.tried == 1
            await client.close()
            server.close()

    asyncio.run(whole())


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EINVAL])
def test_an_end_while_no_client_can_be_taken(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_RETRY_SECONDS", 0.0)

    async def whole() -> None:
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        with listening() as listener:
            failing = Failing(listener, error, times=9)
            server = FunctionServer(Sample("s"), failing, asyncio.get_running_loop())  # type: ignore[arg-type]
            client = await connected(listener)
            while not server.refused:
                await asyncio.sleep(0)
            server.close()
            await client.gone()
            assert failing.tried == 1
            assert not problems
            await client.close()

    asyncio.run(whole())


class Failing:
    """A listening socket that the kernel gives no client for some times."""

    def __init__(self, listener: socket.socket, error: int, times: int) -> None:
        self._listener, self._error, self._times = listener, error, times
        self.tried = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._listener, name)

    def accept(self) -> tuple[socket.socket, object]:
        self.tried += 1
        if self.tried <= self._times:
            raise OSError(self._error, os.strerror(self._error))
        return self._listener.accept()


def test_a_process_of_another_user_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    us = os.geteuid()

    async def story(server: FunctionServer, client: Client) -> None:
        await client.gone()
        assert server.refused == [f"a client of the user {us}"]

    monkeypatch.setattr(server_module.os, "geteuid", lambda: us + 1)
    tell(story, hello=False)


def test_nothing_of_a_client_is_left_for_the_next_one() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(0x1000, 0x1000)
        event = os.eventfd(0)
        await client.interrupts(0, event)
        await client.put(SIZE, 5)
        lost = asyncio.Event()
        server.on_lost = lost.set
        await client.close()
        await within(lost.wait())
        os.close(event)
        model = server.model
        assert (len(model.mirror), model.interrupt(0), model.config.bus_master) == (0, False, False)
        assert model.bars[0].read(SIZE, 4) == (64).to_bytes(4, "little")

    tell(story)


def test_a_function_that_vanishes_takes_no_client_any_more() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        address = server._listener.getsockname()  # type: ignore[union-attr]
        server.close()
        server.close()
        await client.gone()
        with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(address)

    tell(story)


def test_a_client_that_reads_nothing_is_not_read_from_for_ever() -> None:
    async def whole() -> None:
        with listening() as listener:
            server = FunctionServer(Sample("s"), listener, asyncio.get_running_loop())
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(listener.getsockname())
                sock.sendall(wire.message(0, Command.VERSION, bytes(4)))
                sock.setblocking(False)
                ask = wire.message(1, Command.REGION_READ, wire.REGION_ACCESS.pack(0, CONFIG, 4096))
                sent = 0
                while sent < 64 << 20:
                    try:
                        sent += sock.send(ask * 100)
                    except BlockingIOError:
                        await asyncio.sleep(0)
                        if server._connection is not None and not server._connection._reading:
                            break
                assert sent < 64 << 20
                assert server._connection is not None
                assert server._connection._backlog < 8 << 20
            server.close()

    asyncio.run(whole())


# ---- what a client is told


def test_what_the_function_is_and_has() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        info = await client.ask(Command.DEVICE_GET_INFO, wire.DEVICE_INFO.pack(16, 0, 0, 0))
        assert wire.DEVICE_INFO.unpack(info.body) == (16, 3, 9, 5)
        sizes = []
        for index in range(9):
            ask = wire.REGION_INFO.pack(32, 0, index, 0, 0, 0)
            region = await client.ask(Command.DEVICE_GET_REGION_INFO, ask)
            _, flags, same, _, size, _ = wire.REGION_INFO.unpack(region.body)
            assert (same, bool(flags)) == (index, bool(size))
            sizes.append(size)
        assert sizes == [0x4000, 0, 0, 0, 0, 0, 0, 4096, 0]
        counts = []
        for index in range(5):
            reply = await client.ask(Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.pack(16, 0, index, 0))
            counts.append(wire.IRQ_INFO.unpack(reply.body)[3])
        assert counts == [0, 0, 4, 0, 0]

    tell(story)


def test_the_mirror_follows_mappings() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        mirror = server.model.mirror
        await client.map(0x1000, 0x3000)
        await client.map(0x8000, 0x1000, Access.READ)
        again = await client.ask(Command.DMA_MAP, wire.MAP.pack(32, 3, 0, 0x3000, 0x2000))
        assert again.error == errno.EEXIST
        await client.unmap(0x2000, 0x1000)
        assert mirror.ranges() == [(0x1000, 0x1000, 3), (0x3000, 0x1000, 3), (0x8000, 0x1000, 1)]
        assert (await client.ask(Command.DMA_UNMAP, wire.UNMAP.pack(24, 2, 0, 0))).error == 0
        assert len(mirror) == 0

    tell(story)


def test_an_error_register_tells_a_refused_dma() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.write(0, 0, addresses(0x1000, 0x2000, 64))
        await client.put(GO, COPY)
        while not await client.get(DONE):
            pass
        assert await client.get(ERROR) == errno.ENODEV

    tell(story)
