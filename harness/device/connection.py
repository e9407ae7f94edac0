"""One client of one function: messages read and written without ever blocking, and our own requests answered."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from harness.device.wire import HEADER, MAX_FDS, Command, Flags, Header, ProtocolError, header, message

_ROUNDS: Final = 64  # messages read before others of the loop have their turn
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * 4)


class Refused(Exception):
    """A command that cannot be done; the client is told the errno.

    Args:
        error: the errno.
        message: why.
    """

    def __init__(self, error: int, message: str) -> None:
        super().__init__(message)
        self.error = error


class Gone(Exception):
    """The client is gone, so what was asked of it will never be answered."""


class Handler(Protocol):
    """Who does what the client asks for."""

    def command(self, command: int, body: bytes, fds: list[int]) -> tuple[bytes, Callable[[], None] | None]:
        """Do a command.

        Args:
            command: a :class:`Command`.
            body: its body.
            fds: descriptors that came with it; those that are kept must be taken out of the list.

        Returns:
            The reply's body, and what is to be done once the reply is on its way, or None. A client that waits for
            the reply serves no DMA, so nothing that needs DMA may be done before.

        Raises:
            Refused: it cannot be done.
            ProtocolError: the connection must end.
        """

    def lost(self, why: str) -> None:
        """The connection has ended."""


class Connection:
    """The connection with a client; it reads from when it is made until :meth:`close`."""

    def __init__(self, sock: socket.socket, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._handler = handler
        self._loop = loop
        self._head = bytearray()
        self._header: Header | None = None
        self._body = bytearray()
        self._have = 0
        self._fds: list[int] = []
        self._out: deque[memoryview] = deque()
        self._waiting: dict[int, asyncio.Future[tuple[Header, bytes]]] = {}
        self._next = 0
        self._spoken = False
        self.closed = False
        loop.add_reader(sock.fileno(), self._readable)

    # ---- our own requests

    def request(self, command: Command, body: bytes) -> asyncio.Future[tuple[Header, bytes]]:
        """Ask the client for something; the future has the header and the body of its reply.

        The future raises :class:`Gone` when the connection ends.
        """
        future: asyncio.Future[tuple[Header, bytes]] = self._loop.create_future()
        if self.closed:
            future.set_exception(Gone("the client is gone"))
            return future
        while self._next in self._waiting:
            self._next = (self._next + 1) & 0xFFFF
        number, self._next = self._next, (self._next + 1) & 0xFFFF
        self._waiting[number] = future
        self._send(message(number, command, body))
        return future

    # ---- reading

    def _readable(self) -> None:
        try:
            for _ in range(_ROUNDS):
                if self.closed or not self._read_one():
                    return
        except ProtocolError as error:
            self.close(str(error))
        except OSError as error:
            self.close(os.strerror(error.errno or 0))

    def _read_one(self) -> bool:
        """Read what is there of one message; False when there is nothing more for now."""
        if self._header is None:
            # Descriptors belong to the message whose header they come with: so no byte beyond it is read with them.
            try:
                data, ancillary, _, _ = self._sock.recvmsg(HEADER.size - len(self._head), _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                return False
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                    self._fds += received
            if not data:
                self.close("the client closed the connection")
                return False
            self._head += data
            if len(self._head) < HEADER.size:
                return True
            self._header = header(self._head)
            self._body = bytearray(self._header.size - HEADER.size)
            self._have = 0
        while self._have < len(self._body):
            try:
                count = self._sock.recv_into(memoryview(self._body)[self._have :])
            except (BlockingIOError, InterruptedError):
                return False
            if not count:
                self.close("the client closed the connection in the middle of a message")
                return False
            self._have += count
        found, body, fds = self._header, bytes(self._body), self._fds
        self._header, self._head, self._body, self._fds = None, bytearray(), bytearray(), []
        self._dispatch(found, body, fds)
        return True

    def _dispatch(self, found: Header, body: bytes, fds: list[int]) -> None:
        try:
            if found.flags & Flags.TYPE == Flags.REPLY:
                future = self._waiting.pop(found.id, None)
                if future is None:
                    raise ProtocolError(f"a reply to the request {found.id}, which nobody made")
                if not future.done():
                    future.set_result((found, body))
                return
            self._answer(found, body, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _answer(self, found: Header, body: bytes, fds: list[int]) -> None:
        if not self._spoken and found.command != Command.VERSION:
            raise ProtocolError(f"the first message is the command {found.command}, not the version")
        self._spoken = True
        then = None
        try:
            reply, then = self._handler.command(found.command, body, fds)
            out = message(found.id, found.command, reply, flags=Flags.REPLY)
        except Refused as refused:
            out = message(found.id, found.command, flags=Flags.REPLY | Flags.ERROR, error=refused.error)
        if not found.flags & Flags.NO_REPLY:
            self._send(out)
        if then is not None:
            then()

    # ---- writing

    def _send(self, data: bytes) -> None:
        if self.closed:
            return
        rest = memoryview(data)
        if not self._out:
            try:
                rest = rest[self._sock.send(rest) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._loop.call_soon(self.close, os.strerror(error.errno or 0))
                return
            if not rest:
                return
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._out.append(rest)

    def _writable(self) -> None:
        try:
            while self._out:
                rest = self._out[0]
                count = self._sock.send(rest)
                if count < len(rest):
                    self._out[0] = rest[count:]
                    return
                self._out.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(os.strerror(error.errno or 0))
            return
        self._loop.remove_writer(self._sock.fileno())

    # ---- the end

    def close(self, why: str = "closed") -> None:
        """End the connection; who waits for a reply gets :class:`Gone`. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        _end(self._sock)
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Gone(why))
        self._handler.lost(why)


def unknown(command: int) -> Refused:
    """What to say of a command that nobody knows here."""
    return Refused(errno.ENOSYS, f"the command {command} is not known")


def _end(sock: socket.socket) -> None:
    """Close a connection so that the other side reads an end, also when something of it has not been read here.

    Else it would read ECONNRESET, over which QEMU 11.1 fails an assertion.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # nothing more comes in
        while sock.recv(1 << 16):
            pass
    sock.close()
