"""A connection that is dropped while the other side has said something that was not read yet."""

from __future__ import annotations

import asyncio
import socket

from harness.device.connection import Connection


class Deaf:
    """Is told nothing but the end."""

    def __init__(self) -> None:
        self.why = ""

    def command(self, command: int, body: bytes, fds: list[int]) -> tuple[bytes, None]:
        raise AssertionError("nothing is read here")

    def lost(self, why: str) -> None:
        self.why = why


def test_the_other_side_reads_an_end_and_no_error() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        handler = Deaf()
        connection = Connection(ours, handler, asyncio.get_running_loop())
        with theirs:
            theirs.sendall(bytes(100_000))  # before the loop could read any of it
            connection.close("vanished")
            assert theirs.recv(1) == b""  # ECONNRESET without the care that is taken
        assert handler.why == "vanished"

    asyncio.run(story())
