"""Transfers: pieces, refusals, the log, many at once."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket

import pytest
from client import PAGE, Client, within
from telling import tell

from harness.device import wire
from harness.device.connection import Gone
from harness.device.dma import LONG, DmaError, Transfer, TransferLog
from harness.device.server import FunctionServer
from harness.device.wire import Access, Command, Flags

BASE = 0x10_0000


@pytest.mark.parametrize(("at", "size"), [(0, 0), (0, 1), (5, 4096), (4095, 2), (100, 100_000), (0, 1 << 20)])
def test_bytes_come_and_go_whole(at: int, size: int) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 2 << 20)
        data = bytes(number % 251 for number in range(size))
        await within(server.model.dma.write(BASE + at, data))
        assert client.peek(BASE + at, size) == data
        assert await within(server.model.dma.read(BASE + at, size)) == data
        assert all(count <= LONG for _, _, count in client.asked)
        log = server.model.dma.log
        assert (log.bytes_read, log.bytes_written, log.errors) == (size, size, 0)

    tell(story)


def test_pieces_are_long_where_all_is_mapped_and_pages_elsewhere() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 2 * LONG)
        await client.map(BASE + 2 * LONG, 0x2000, Access.READ)
        await within(server.model.dma.read(BASE + 100, 2 * LONG + 0x1000))
        sizes = [size for _, _, size in client.asked]
        assert sizes == [LONG - 100, LONG, 0x1000 + 100]
        client.asked.clear()
        with pytest.raises(DmaError) as refused:
            await within(server.model.dma.write(BASE + 2 * LONG - 0x1000, bytes(0x4000)))
        assert refused.value.iova == BASE + 2 * LONG
        assert [size for _, _, size in client.asked] == [PAGE] * 4

    tell(story)


def test_a_refusal_says_where_and_what_came_before_has_been_done() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 0x1000)
        with pytest.raises(DmaError) as refused:
            await within(server.model.dma.write(BASE + 0xFFE, b"abcd", "on purpose"))
        assert client.peek(BASE + 0xFFE, 2) == b"ab"
        assert refused.value.iova == BASE + 0x1000
        assert str(refused.value) == f"the write of 2 bytes at {BASE + 0x1000:#x} was refused, errno 19"
        assert server.model.dma.log.news() == (
            [
                {
                    "access": "write",
                    "iova": BASE + 0xFFE,
                    "size": 4,
                    "bus_master": True,
                    "refused": [[BASE + 0x1000, 2]],
                    "error": "ENODEV",
                    "note": "on purpose",
                    "cut": False,
                }
            ],
            0,
        )

    tell(story)


def test_nothing_is_asked_for_behind_a_refusal() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        with pytest.raises(DmaError):
            await within(server.model.dma.read(BASE, 16 << 20))
        assert len(client.asked) == 8
        assert len(server.model.dma.log.news()[0][0]["refused"]) == 8

    tell(story)


@pytest.mark.parametrize(("iova", "size"), [(-1, 1), ((1 << 64) - 1, 2), (1 << 64, 1)])
def test_what_is_beyond_64_bits_is_refused_here(iova: int, size: int) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        with pytest.raises(DmaError):
            await server.model.dma.read(iova, size)
        assert server.model.dma.log.news()[0][0]["error"] == "EFAULT"
        assert client.asked == []

    tell(story)


def test_the_last_byte_can_be_reached() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map((1 << 64) - PAGE, PAGE)
        await within(server.model.dma.write((1 << 64) - 1, b"x"))

    tell(story)


def test_a_client_may_take_less_in_one_message() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 0x8000)
        assert server.model.dma.connection is not None
        server.model.dma.connection.max_transfer = 5000
        await within(server.model.dma.read(BASE, 0x8000))
        assert {size for _, _, size in client.asked} == {PAGE}

    tell(story)


def test_many_transfers_at_once_are_on_their_way_sixteen_requests_at_a_time() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 0x1000)
        client.serving = False
        reads = [asyncio.ensure_future(server.model.dma.read(BASE + number, 1)) for number in range(100)]
        client.poke(BASE, bytes(range(100)))
        await client.arrived(16)
        for number in (3, 99):  # one that is on its way, one that waits
            reads[number].cancel()
        await client.get(0)  # a round, in which nothing more may come
        assert len(client.asked) == 16
        await client.serve()
        done = await within(asyncio.gather(*reads, return_exceptions=True))
        assert [one for one in done if isinstance(one, bytes)] == [bytes([n]) for n in range(100) if n not in (3, 99)]
        assert len(client.asked) == 99, "what was cancelled before it was sent is not sent"

    tell(story)


def test_what_a_transfer_that_is_cancelled_has_not_sent_is_not_sent() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        reads = [asyncio.ensure_future(server.model.dma.read(BASE + number, 1)) for number in range(16)]
        await client.arrived(16)
        long = asyncio.ensure_future(server.model.dma.write(BASE, bytes(8 * PAGE)))
        await client.get(0)
        long.cancel()
        await client.get(0)
        await client.serve()
        await within(asyncio.gather(*reads, return_exceptions=True))
        await client.get(0)
        assert [command for command, _, _ in client.asked] == [Command.DMA_READ] * 16

    tell(story)


def test_what_is_refused_once_bus_mastering_is_off_is_cut_short() -> None:
    """As a reset by Linux does it; nobody knows of such a piece why it was refused."""

    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 0x1000)
        cuts = []
        for how in ("refused", "switched off", "switched off and done", "cancelled", "refused and cancelled"):
            client.serving, client.asked = False, []
            write = asyncio.ensure_future(server.model.dma.write(BASE + 0xFFE, b"abcd"))
            await client.arrived(2)
            if how.startswith("switched"):
                await client.bus_master(False)
                if how.endswith("done"):
                    client.pages[BASE // PAGE + 1] = bytearray(PAGE), 3
            if how.endswith("cancelled"):
                if how.startswith("refused"):
                    await client.answer(*client.held.pop())
                write.cancel()
            await client.serve()
            await within(asyncio.gather(write, return_exceptions=True))
            await client.get(0)
            (transfer,), _ = server.model.dma.log.news()
            assert transfer["bus_master"] is True
            cuts.append((how, transfer["cut"], transfer["error"]))
            client.pages.pop(BASE // PAGE + 1, None)
            await client.bus_master()
        assert cuts == [
            ("refused", False, "ENODEV"),
            ("switched off", True, "ENODEV"),
            ("switched off and done", False, ""),
            ("cancelled", True, "ECANCELED"),
            ("refused and cancelled", True, "ECANCELED"),
        ]

    tell(story)


def test_who_vanishes_has_its_answers_first_and_asks_for_nothing_more() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        reads = [asyncio.ensure_future(server.model.dma.read(BASE + n, 1)) for n in range(20)]
        await client.arrived(16)
        vanishing = asyncio.ensure_future(server.vanish())
        await client.get(0)  # it still answers
        assert not client.closed.is_set()
        for head, body in client.held[:15]:
            await client.answer(head, body)
        await client.get(0)
        assert not vanishing.done()
        assert len(client.asked) == 16
        await client.answer(*client.held[15])
        await within(vanishing)
        await client.gone()
        ended = await within(asyncio.gather(*reads, return_exceptions=True))
        assert [type(one) for one in ended] == [DmaError] * 16 + [Gone] * 4

    tell(story)


@pytest.mark.parametrize("goes", [False, True])
def test_who_vanishes_waits_for_no_client_for_ever(goes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.device.server._DRAIN_SECONDS", 20 if goes else 0.01)

    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        read = asyncio.ensure_future(server.model.dma.read(BASE, 1))
        await client.arrived(1)
        vanishing = asyncio.ensure_future(server.vanish())
        if goes:
            await client.get(0)
            client.sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(vanishing, 10)
        with pytest.raises(Gone):
            await within(read)

    tell(story)


def test_what_resets_end_is_not_kept_for_a_client_that_answers_nothing() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        connection = server.model.dma.connection
        assert connection is not None
        for _ in range(20):
            server.model.start(server.model.dma.write(BASE, bytes(8 * PAGE)))
            await client.get(0)
            assert (await client.ask(Command.DEVICE_RESET)).error == 0
        await client.get(0)
        assert (len(connection._waiting), len(connection._queue)) == (16, 0)

    tell(story)


@pytest.mark.parametrize(
    ("command", "at", "why"),
    [
        (Command.REGION_READ, BASE, "a reply of the command 9"),
        (Command.DMA_WRITE, BASE, "a reply of the command 12"),
        (Command.DMA_READ, BASE + 8, "of another place"),
    ],
)
def test_a_reply_to_something_else_ends_the_connection(command: int, at: int, why: str) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        read = asyncio.ensure_future(server.model.dma.read(BASE, 8))
        await client.arrived(1)
        head, _ = client.held[0]
        body = wire.DMA_ACCESS.pack(at, 8) + bytes(8)
        await client.raw(wire.message(head.id, command, body, flags=Flags.REPLY))
        with pytest.raises(Gone):
            await within(read)
        await client.gone()
        assert why in server.refused[-1]

    tell(story)


def test_numbers_run_over() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 0x1000)
        client.serving = False
        first = asyncio.ensure_future(server.model.dma.read(BASE, 1))
        await client.arrived(1)
        connection = server.model.dma.connection
        assert connection is not None
        connection._next = 0xFFFF
        client.serving = True
        for _ in range(3):
            await within(server.model.dma.read(BASE, 1))
        assert connection._next == 3, "0 is on its way still"
        await client.serve()
        await within(first)

    tell(story)


@pytest.mark.parametrize("length", [0, 15, 16, 20, 24 + 1])
def test_a_reply_of_another_length_ends_the_connection(length: int) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        read = asyncio.ensure_future(server.model.dma.read(BASE, 8))
        await client.arrived(1)
        head, _ = client.held[0]
        await client.raw(wire.message(head.id, Command.DMA_READ, bytes(length), flags=Flags.REPLY))
        with pytest.raises(Gone):
            await within(read)
        await client.gone()
        assert "in reply to a DMA read of 8" in server.refused[-1]

    tell(story)


def test_an_error_without_a_number_is_one_all_the_same() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        client.serving = False
        read = asyncio.ensure_future(server.model.dma.read(BASE, 8))
        await client.arrived(1)
        head, _ = client.held[0]
        await client.raw(wire.message(head.id, Command.DMA_READ, flags=Flags.REPLY | Flags.ERROR))
        with pytest.raises(DmaError):
            await within(read)
        assert server.model.dma.log.news()[0][0]["error"] == "EIO"

    tell(story)


async def all_gone(work: list[asyncio.Future[bytes]]) -> None:
    ends = await within(asyncio.gather(*work, return_exceptions=True))
    assert [type(end) for end in ends] == [Gone] * len(work)


def test_a_client_that_goes_away_ends_every_transfer() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(BASE, 1 << 20)
        client.serving = False
        work = [asyncio.ensure_future(server.model.dma.read(BASE, 1 << 20)) for _ in range(3)]
        await client.arrived(16)
        await client.close()
        await all_gone(work)
        with pytest.raises(Gone):
            await server.model.dma.write(BASE, b"x")
        log, more = server.model.dma.log.news()
        assert [one["error"] for one in log] == ["ECANCELED"] * 3
        assert more == 0
        work.clear()
        gc.collect()  # a future whose exception nobody has seen is told to the loop now

    tell(story)


def _transfer(*, refused: bool) -> Transfer:
    return Transfer(Access.READ, 0, 8, True, [(0, 8)] if refused else [], errno.ENODEV if refused else 0)


def test_the_log_is_bounded_and_says_so() -> None:
    log = TransferLog()
    for number in range(30_000):
        log.add(_transfer(refused=number % 2 == 0))
    kept, more = log.news()
    assert (len(kept), more) == (11_000, 19_000)
    assert sum(bool(one["refused"]) for one in kept) == 10_000
    assert (log.errors, log.bytes_read) == (15_000, 8 * 15_000)
    assert log.news() == ([], 0)
    log.add(_transfer(refused=False))
    kept, more = log.news()
    assert (len(kept), more) == (1, 0)
