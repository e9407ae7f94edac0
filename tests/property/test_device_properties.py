"""Device models under generated input: mappings, messages, configuration space, and bytes that are no messages."""

from __future__ import annotations

import asyncio
import socket
import struct
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.device import wire
from harness.device.config import Acs, ConfigSpace, Identity, Msix, Pcie
from harness.device.mirror import Mirror, Overlap
from harness.device.model import Model
from harness.device.registers import Register
from harness.device.server import FunctionServer
from harness.device.wire import Command, Flags

PAGES = 24
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(0, PAGES))
changes = st.lists(st.tuples(st.booleans(), ranges, st.integers(1, 3)), max_size=40)


@given(changes)
@example([(True, (0, 4), 3), (False, (1, 0), 1), (False, (1, 2), 1)])
def test_a_mirror_says_what_each_page_is(steps: list[tuple[bool, tuple[int, int], int]]) -> None:
    mirror = Mirror()
    pages: dict[int, int] = {}
    for add, (first, count), access in steps:
        wanted = range(first, first + count)
        generation = mirror.generation
        if add:
            try:
                mirror.add(first * 4096, count * 4096, access)
            except Overlap:
                assert any(page in pages for page in wanted)
                assert mirror.generation == generation
            except ValueError:
                assert count == 0
            else:
                assert not any(page in pages for page in wanted)
                pages.update(dict.fromkeys(wanted, access))
        else:
            removed = [page for page in wanted if pages.pop(page, None)]
            assert mirror.remove(first * 4096, count * 4096) == 4096 * len(removed)
            assert (mirror.generation != generation) == bool(removed)
        found = mirror.ranges()
        told = {page: one.access for one in found for page in range(one.iova // 4096, (one.iova + one.size) // 4096)}
        assert told == pages
        assert all(one.iova + one.size < other.iova or one.access != other.access for one, other in pairwise(found)), (
            "what belongs together is one"
        )
        assert bool(len(mirror)) == bool(pages)
        for need in (1, 2, 3):
            for start in range(0, PAGES, 5):
                everywhere = all(pages.get(page, 0) & need == need for page in range(start, start + 3))
                assert mirror.covers(start * 4096 + 7, 2 * 4096, need) == everywhere


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.binary(max_size=100),
    st.sampled_from([0, 1, 0x10, 0x20, 0x21]),
    st.integers(0, 0xFFFF_FFFF),
)
def test_a_message_is_read_as_it_was_written(number: int, command: int, body: bytes, flags: int, error: int) -> None:
    data = wire.message(number, command, body, flags=flags, error=error)
    assert wire.header(data[: wire.HEADER.size]) == (number, command, len(data), flags, error)
    assert data[wire.HEADER.size :] == body


@given(st.binary(min_size=16, max_size=16))
def test_a_header_is_read_or_refused(data: bytes) -> None:
    try:
        found = wire.header(data)
    except wire.ProtocolError:
        return
    assert 16 <= found.size <= 16 + wire.MAX_BODY
    assert found.flags & 0xF in (0, 1)


@given(st.binary(max_size=200))
def test_a_version_is_read_or_refused(data: bytes) -> None:
    try:
        said = wire.version(bytes(4) + data)
    except wire.ProtocolError:
        return
    assert 4096 <= said.max_transfer <= wire.MAX_TRANSFER


IDENTITY = Identity(0x8086, 0x4940, 0x0B4000, 0x40, (Pcie(), Msix(3, 0, 0x2000, 0x3000), Acs()))
# What may change: command, cache line, BAR 0, interrupt line, device control but for the bit that starts a reset, and
# MSI-X's enable and mask. Everything else is read-only, whatever is written.
WRITABLE = {0x04: 0x06, 0x05: 0x04, 0x0C: 0xFF, 0x3C: 0xFF, 0x48: 0xFF, 0x49: 0x7F, 0x7F: 0xC0}
WRITABLE |= {0x11: 0xC0, **dict.fromkeys(range(0x12, 0x18), 0xFF)}
places = st.one_of(st.integers(0, 0x90), st.integers(0xF8, 0x110), st.integers(0, 4088))


@given(st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), max_size=20))
@example([(0, b"\xff" * 8), (0x48, b"\xff\xff")])
def test_writes_never_change_what_is_read_only(writes: list[tuple[int, bytes]]) -> None:
    space = ConfigSpace(IDENTITY, {0: 0x4000})
    flrs: list[int] = []
    space.on_flr = lambda: flrs.append(1)
    first = space.read(0, 4096)
    expected = bytearray(first)
    wanted = 0
    for offset, data in writes:
        space.write(offset, data)
        wanted += offset <= 0x49 < offset + len(data) and bool(data[0x49 - offset] & 0x80)
        for at, byte in enumerate(data, offset):
            mask = WRITABLE.get(at, 0)
            expected[at] = expected[at] & ~mask | byte & mask
    assert space.read(0, 4096) == expected
    assert len(flrs) == wanted
    space.reset()
    assert space.read(0, 4096) == first


# ---- bytes


class Sink(Model):
    """A function whose register starts DMA at any address that a client gives."""

    identity = IDENTITY

    def build(self) -> None:
        bar = self.bar(0, 0x4000)
        bar.add(0, Register("AT", 8, write=lambda at: self.start(self.work(at))))
        bar.add(8, Register("BREAK", read=lambda: 1 // 0, write=lambda _: [][0]))

    async def work(self, at: int) -> None:
        await self.dma.read(at, 5000)


def _body(command: int) -> st.SearchStrategy[bytes]:
    small, any64 = st.integers(0, 40), st.integers(0, (1 << 64) - 1)
    any32 = st.integers(0, (1 << 32) - 1)
    region = st.tuples(st.one_of(small, any64), st.sampled_from([0, 7, 1, 9]), st.one_of(small, any32))
    layouts = {
        Command.REGION_READ: region.map(lambda f: wire.REGION_ACCESS.pack(*f)),
        Command.REGION_WRITE: st.tuples(
            st.sampled_from([0, 8, 4, 0x48]), st.sampled_from([0, 7]), st.binary(max_size=9)
        ).map(lambda f: wire.REGION_ACCESS.pack(f[0], f[1], len(f[2])) + f[2]),
        Command.DMA_MAP: st.tuples(st.integers(0, 4), any64, any64).map(lambda f: wire.MAP.pack(32, f[0], 0, *f[1:])),
        Command.DMA_UNMAP: st.tuples(st.integers(0, 3), any64, any64).map(lambda f: wire.UNMAP.pack(24, *f)),
        Command.DEVICE_SET_IRQS: st.tuples(any32, st.integers(0, 5), small, small).map(
            lambda f: wire.SET_IRQS.pack(20, *f)
        ),
    }
    structured = layouts.get(command)  # type: ignore[call-overload]
    return st.binary(max_size=60) if structured is None else st.one_of(structured, st.binary(max_size=60))


commands = st.one_of(st.sampled_from([int(one) for one in Command]), st.integers(0, 0xFFFF))
messages = commands.flatmap(
    lambda command: st.builds(
        lambda number, body, flags: wire.message(number, command, body, flags=flags),
        st.integers(0, 0xFFFF),
        _body(command),
        st.sampled_from([0, 0, 0, 0, 0, 0x10, int(Flags.REPLY)]),
    )
)
streams = st.lists(st.one_of(messages, messages, messages, st.binary(max_size=40)), max_size=12)


async def _told(garbage: bytes, cut: int) -> None:
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    listeners = []
    for _ in range(2):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")
        listener.listen(1)
        listeners.append(listener)
    strange, other = (FunctionServer(Sink(f"s{number}"), one, loop) for number, one in enumerate(listeners))
    clients = []
    for listener in listeners:
        client = socket.socket(socket.AF_UNIX)
        client.connect(listener.getsockname())
        client.setblocking(False)
        await loop.sock_sendall(client, wire.message(0, Command.VERSION, bytes(4)))
        clients.append(client)
    lost = asyncio.Event()
    strange.on_lost = lost.set
    for part in (garbage[:cut], garbage[cut:]):
        try:
            await loop.sock_sendall(clients[0], part)
        except ConnectionError:
            break
    clients[0].close()
    await asyncio.wait_for(lost.wait(), 10)
    assert (len(strange.model.mirror), strange.model.dma.connection) == (0, None)
    # The other function, of the same process, is as it was; and the first one takes a client again.
    again = socket.socket(socket.AF_UNIX)
    again.connect(listeners[0].getsockname())
    again.setblocking(False)
    await loop.sock_sendall(again, wire.message(0, Command.VERSION, bytes(4)))
    for client in (clients[1], again):
        body = wire.REGION_ACCESS.pack(0, 7, 4)
        await loop.sock_sendall(client, wire.message(9, Command.REGION_READ, body))
        data = b""
        while not data.endswith(struct.pack("<HH", 0x8086, 0x4940)):
            more = await asyncio.wait_for(loop.sock_recv(client, 4096), 10)
            assert more, "the connection ended"
            data += more
        client.close()
    strange.close()
    other.close()
    assert not problems, "an exception that only the loop saw"


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(streams, st.integers(0, 300))
@example([wire.message(5, 10, wire.REGION_ACCESS.pack(0, 0, 8) + bytes(8)), wire.message(0, 11, b"x", flags=1)], 0)
@example([wire.message(5, 9, wire.REGION_ACCESS.pack(8, 0, 4))], 20)
def test_no_bytes_end_the_server_or_another_function(parts: list[bytes], cut: int) -> None:
    asyncio.run(_told(b"".join(parts), cut))
