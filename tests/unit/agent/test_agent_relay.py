"""The relay between two socket pairs, driven as the supervisor drives it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.agent.relay import Relay

LIMIT = 256 * 1024
CHUNK = 32 * 1024


class Line:
    """A relay with the host's end of the port and the SSH server's own end."""

    def __init__(self) -> None:
        self.host, port = socket.socketpair()
        self.sshd, server = socket.socketpair()
        self.port_fd, self.server_fd = port.detach(), server.fileno()
        self.relay = Relay(self.port_fd, server)
        self.host.setblocking(False)
        self.sshd.setblocking(False)

    def turn(self) -> bool:
        """One turn of the supervisor's loop over what is ready now; False when the connection has ended."""
        return all(self.relay.step(fd, ready) for fd, ready in self.poll())

    def poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        for fd, mask in self.relay.interests():
            poll.register(fd, mask)
        return poll.poll(0)

    def rest(self) -> None:
        """Turn until nothing is ready any more."""
        while self.poll():
            assert self.turn()

    def mask(self, fd: int) -> int:
        return dict(self.relay.interests())[fd]

    def close(self) -> None:
        self.relay.close()
        self.host.close()
        self.sshd.close()


@contextlib.contextmanager
def new_line() -> Iterator[Line]:
    one = Line()
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def line() -> Iterator[Line]:
    with new_line() as one:
        yield one


def receive(sock: socket.socket) -> bytes:
    """Everything that is there now."""
    data = bytearray()
    with contextlib.suppress(BlockingIOError):
        while more := sock.recv(1 << 20):
            data += more
    return bytes(data)


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def fill(sock: socket.socket, data: bytes) -> bytes:
    """Send what is taken now; returns the rest."""
    with contextlib.suppress(BlockingIOError):
        while data:
            data = data[sock.send(data[:CHUNK]) :]
    return data


def test_both_directions(line: Line) -> None:
    line.host.send(b"SSH-2.0-client")
    line.sshd.send(b"SSH-2.0-server")
    line.rest()
    assert receive(line.sshd) == b"SSH-2.0-client"
    assert receive(line.host) == b"SSH-2.0-server"
    line.host.send(b"more")
    line.rest()
    assert receive(line.sshd) == b"more"
    assert line.mask(line.port_fd) == line.mask(line.server_fd) == select.POLLIN


@pytest.mark.parametrize("to_server", [True, False])
def test_a_slow_reader_stops_the_reading_and_loses_nothing(line: Line, to_server: bool) -> None:
    source, target = (line.host, line.sshd) if to_server else (line.sshd, line.host)
    in_fd, out_fd = (line.port_fd, line.server_fd) if to_server else (line.server_fd, line.port_fd)
    data = rest = os.urandom(3 << 20)
    moved = True
    while moved:
        left = fill(source, rest)
        line.rest()
        moved, rest = left != rest, left
    assert rest, "the relay takes no more than its limit and what the sockets hold"
    assert not line.mask(in_fd) & select.POLLIN
    assert line.mask(out_fd) == select.POLLOUT | select.POLLIN, "the other direction goes on"
    waiting = len(data) - len(rest)
    got = bytearray()
    while len(got) < len(data):
        assert line.turn()
        got += receive(target)
        rest = fill(source, rest)
    assert bytes(got) == data
    assert waiting < 3 << 20
    line.rest()
    assert line.mask(in_fd) == select.POLLIN


def test_no_more_than_the_limit_waits(line: Line) -> None:
    """What the sockets hold is measured: they are filled first, so that all else waits in the relay."""
    hidden = os.dup(line.server_fd)
    in_socket = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            in_socket += os.write(hidden, bytes(CHUNK))
    with contextlib.suppress(BlockingIOError):
        while True:
            in_socket += os.write(hidden, b"\0")
    os.close(hidden)
    taken = 0
    while line.mask(line.port_fd) & select.POLLIN:
        taken += line.host.send(bytes(CHUNK))
        line.rest()
        assert taken <= 2 * LIMIT
    assert LIMIT <= taken < LIMIT + CHUNK
    got = 0
    while line.mask(line.server_fd) & select.POLLOUT:
        got += len(receive(line.sshd))
        line.turn()
    assert got + len(receive(line.sshd)) == in_socket + taken


def test_the_port_ends_first(line: Line) -> None:
    line.host.send(b"last words")
    line.host.close()
    for _ in range(3):
        assert line.turn()
    assert receive(line.sshd) == b"last words"
    assert ended(line.sshd)
    assert [fd for fd, _ in line.relay.interests()] == [line.server_fd], (
        "its hang-up would wake the supervisor for ever"
    )
    assert line.poll() == []
    line.sshd.send(b"too late")
    line.rest()
    line.sshd.close()
    assert not line.turn()


def test_the_server_is_told_of_the_end_only_after_all_that_was_sent(line: Line) -> None:
    data = os.urandom(LIMIT - 1)
    rest = fill(line.host, data)
    while rest:
        line.turn()
        rest = fill(line.host, rest)
    line.host.close()
    got = bytearray()
    while len(got) < len(data):
        assert line.turn()
        with contextlib.suppress(BlockingIOError):
            got += line.sshd.recv(1000)
    line.turn()
    assert bytes(got) == data
    assert ended(line.sshd)


def test_the_server_ends_first(line: Line) -> None:
    line.sshd.send(b"bye")
    line.sshd.close()
    while line.turn():
        pass
    assert receive(line.host) == b"bye"


def test_what_the_server_sent_is_written_before_the_connection_ends(line: Line) -> None:
    sent = bytearray()
    while not line.mask(line.port_fd) & select.POLLOUT:
        data = os.urandom(CHUNK)
        line.sshd.sendall(data)
        sent += data
        line.rest()
    line.sshd.close()
    assert line.turn(), "something is left to write"
    got = bytearray(receive(line.host))
    while line.turn():
        got += receive(line.host)
    assert got + receive(line.host) == sent


def test_nothing_is_ready_while_a_slow_host_keeps_a_server_that_has_ended(line: Line) -> None:
    """Its hang-up would wake the supervisor for ever, and a guest that is never idle cannot be frozen."""
    data = rest = os.urandom(1 << 20)
    while line.mask(line.server_fd) & select.POLLIN:
        rest = fill(line.sshd, rest)
        line.rest()
    line.sshd.close()
    got = b""
    while line.server_fd in dict(line.relay.interests()):
        got += line.host.recv(CHUNK)
        line.turn()
    assert line.poll() == []
    while line.turn():
        got += receive(line.host)
    assert got + receive(line.host) == data[: len(data) - len(rest)]


def test_a_port_that_is_gone_does_not_raise(line: Line) -> None:
    line.sshd.send(b"answer")
    line.host.close()
    # The server is read first: the write to the port fails before its end was seen.
    assert line.relay.step(line.server_fd, select.POLLIN)
    assert ended(line.sshd)
    line.sshd.send(b"more")
    line.rest()
    line.sshd.close()
    assert not line.turn()


def test_a_server_that_is_gone_does_not_raise(line: Line) -> None:
    line.host.send(b"question")
    line.sshd.close()
    assert not line.relay.step(line.port_fd, select.POLLIN)


def test_close_ends_both(line: Line) -> None:
    line.relay.close()
    try:
        assert ended(line.host)
        assert ended(line.sshd)
    finally:
        line.relay = Relay(os.open(os.devnull, os.O_RDWR), socket.socket())


CHUNKS = st.lists(st.tuples(st.booleans(), st.binary(max_size=5000), st.booleans(), st.booleans()), max_size=30)


@settings(deadline=None)
@given(CHUNKS)
def test_every_byte_arrives_unchanged(chunks: list[tuple[bool, bytes, bool, bool]]) -> None:
    with new_line() as line:
        sent = {line.host: bytearray(), line.sshd: bytearray()}
        got = {line.host: bytearray(), line.sshd: bytearray()}
        for from_host, data, turn, read in chunks:
            source, target = (line.host, line.sshd) if from_host else (line.sshd, line.host)
            sent[source] += data
            source.sendall(data)
            if turn:
                assert line.turn()
            if read:
                got[target] += receive(target)
        line.rest()
        for sock, other in ((line.host, line.sshd), (line.sshd, line.host)):
            got[sock] += receive(sock)
            assert got[sock] == sent[other]
