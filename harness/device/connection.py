"""One client of one function: messages read and written without ever blocking, and our own requests answered."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import select
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from harness.device.wire import HEADER, MAX_FDS, MAX_TRANSFER, Command, Flags, Header, ProtocolError, header, message

_ROUNDS: Final = 64  # messages read before others of the loop have their turn
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * 4)
_OUTSTANDING: Final = 16  # requests of ours that the client has not answered; the others wait here
_BACKLOG: Final = 4 << 20  # bytes that a client leaves unread before nothing more is read from it
# As plain integers: arithmetic with an IntFlag costs ten times as much, and this is done for every message.
_TYPE, _REPLY, _NO_REPLY, _ERROR = int(Flags.TYPE), int(Flags.REPLY), int(Flags.NO_REPLY), int(Flags.ERROR)


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


class Reply(NamedTuple):
    """What the client answered.

    Args:
        error: its errno; 0 where it did what was asked.
        body: the reply's body.
    """

    error: int
    body: bytes


class Handler(Protocol):
    """Who does what the client asks for."""

    def command(self, command: int, body: bytes, fds: list[int]) -> tuple[bytes, Callable[[], None] | None]:
        """Do a command.

        Args:
            command: a :class:`Command`, or a number that is none.
            body: its body.
            fds: descriptors that came with it; those that are kept must be taken out of the list.

        Returns:
            The reply's body, and what is to be done once the reply is on its way, or None. A client that waits for
            the reply serves no DMA, so nothing that needs DMA may be done before.

        Raises:
            Refused: it cannot be done.
            ProtocolError: the connection must end.
        """

    def failed(self, error: BaseException) -> None:
        """Doing a command raised what it should not."""

    def lost(self, why: str) -> None:
        """The connection has ended."""


class Connection:
    """The connection with a client; it reads from when it is made until :meth:`close`.

    Attributes:
        max_transfer: bytes of data that the client takes in one message.
        closed: it has ended.
    """

    def __init__(self, sock: socket.socket, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        sock.setblocking(False)
        self.max_transfer = MAX_TRANSFER
        self.closed = False
        self._sock = sock
        self._fileno = sock.fileno()
        self._handler = handler
        self._loop = loop
        self._head = bytearray(HEADER.size)
        self._have = 0  # bytes of the header
        self._header: Header | None = None
        self._body: list[bytes] = []
        self._left = 0  # bytes of the body
        self._fds: list[int] = []
        self._out: deque[memoryview] = deque()
        self._backlog = 0  # bytes
        self._waiting: dict[int, tuple[Command, asyncio.Future[Reply]]] = {}
        self._queue: OrderedDict[asyncio.Future[Reply], tuple[Command, bytes]] = OrderedDict()
        self._next = 0
        self._drained: asyncio.Event | None = None  # set when nothing more is on its way; None while it goes on
        self._held = self._reading = False
        self._regulate()

    @property
    def hung_up(self) -> bool:
        """Whether the client has closed its end, also when something that it said before has not been read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    # ---- our own requests

    def request(self, command: Command, body: bytes) -> asyncio.Future[Reply]:
        """Ask the client for something.

        At most 16 requests are on their way at a time; the others follow in their order. A request may be cancelled:
        its reply is taken all the same, so no other request gets its number before. One that is not on its way yet is
        forgotten.

        Returns:
            A future, which raises :class:`Gone` when the connection ends.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.closed:
            future.set_exception(Gone("the client is gone"))
        elif len(self._waiting) < _OUTSTANDING and self._drained is None:
            self._ask(command, body, future)
        else:
            self._queue[future] = command, body
            future.add_done_callback(self._forget)
        return future

    def _forget(self, future: asyncio.Future[Reply]) -> None:
        self._queue.pop(future, None)

    def _ask(self, command: Command, body: bytes, future: asyncio.Future[Reply]) -> None:
        number = self._next
        while number in self._waiting:
            number = number + 1 & 0xFFFF
        self._next = number + 1 & 0xFFFF
        self._waiting[number] = command, future
        self._send(message(number, command, body))

    def _take_reply(self, found: Header, body: bytes) -> None:
        command, future = self._waiting.get(found.id, (None, None))
        if future is None:
            raise ProtocolError(f"a reply to the request {found.id}, which nobody made")
        if found.command != command:
            what = f"a reply of the command {found.command} to the request {found.id}, a command {command}"
            raise ProtocolError(what)  # its future ends with the connection
        del self._waiting[found.id]
        if self._drained is not None and not self._waiting:
            self._drained.set()
        while self._queue and self._drained is None:
            following, (command, asked) = self._queue.popitem(last=False)
            if not following.done():
                self._ask(command, asked, following)
                break
        if not future.done():
            future.set_result(Reply(found.error or errno.EIO if found.flags & _ERROR else 0, body))

    # ---- reading

    def read(self) -> None:
        """Take what the client has sent; the loop calls it when there is something."""
        try:
            for _ in range(_ROUNDS):
                if not self._reading or not self._read_one():
                    return
        except ProtocolError as error:
            self.close(str(error))
        except OSError as error:
            self.close(os.strerror(error.errno or 0))

    def _read_one(self) -> bool:
        """Read what is there of one message; False when there is nothing more for now."""
        if self._header is None and not self._read_header():
            return False
        while self._left:
            try:
                data = self._sock.recv(self._left)
            except (BlockingIOError, InterruptedError):
                return False
            if not data:
                self.close("the client closed the connection in the middle of a message")
                return False
            self._body.append(data)
            self._left -= len(data)
        found, parts, fds = self._header, self._body, self._fds
        assert found is not None  # noqa: S101 - read above
        self._header, self._body, self._fds = None, [], []
        try:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            if found.flags & _TYPE == _REPLY:
                self._take_reply(found, body)
                return bool(self._waiting)  # else there is most likely nothing, and the loop sees what there is
            self._answer(found, body, fds)
            return True
        finally:
            for fd in fds:
                os.close(fd)

    def _read_header(self) -> bool:
        """Descriptors belong to the message whose header they come with: so no byte behind it is read with them."""
        rest = memoryview(self._head)[self._have :]
        try:
            count, ancillary, flags, _ = self._sock.recvmsg_into([rest], _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return False
        if ancillary:
            self._take_descriptors(ancillary)
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
            raise ProtocolError(f"more descriptors with a message than can be taken; {MAX_FDS} may come")
        if not count:
            self.close("the client closed the connection" + " in the middle of a message" * bool(self._have))
            return False
        self._have += count
        if self._have < HEADER.size:
            return self._read_header()
        self._have = 0
        self._header = header(self._head)
        self._left = self._header.size - HEADER.size
        return True

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._fds += received

    def _answer(self, found: Header, body: bytes, fds: list[int]) -> None:
        then = None
        flags, error, reply = _REPLY, 0, b""
        try:
            reply, then = self._handler.command(found.command, body, fds)
        except ProtocolError:
            raise
        except Refused as refused:
            flags, error = _REPLY | _ERROR, refused.error
        except (Exception, asyncio.CancelledError) as broken:  # a model's own: the client is told, the function goes on
            flags, error = _REPLY | _ERROR, errno.EIO
            self._handler.failed(broken)
        if not found.flags & _NO_REPLY:
            self._send(message(found.id, found.command, reply, flags=flags, error=error))
        if then is not None:
            try:
                then()
            except (Exception, asyncio.CancelledError) as broken:
                self._handler.failed(broken)

    async def drain(self, seconds: float) -> None:
        """Ask for nothing more, and wait until what has been asked for is answered, so long at most.

        A QEMU whose answers meet a closed connection may keep them, and wait for a minute at the next access.
        """
        self._drained = asyncio.Event()
        if self._waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), seconds)

    def hold(self, held: bool) -> None:
        """Read nothing more, or read again."""
        self._held = held
        self._regulate()

    def _regulate(self) -> None:
        """Read unless somebody holds it, or the client itself does not read."""
        wanted = not self.closed and not self._held and self._backlog <= _BACKLOG
        if wanted and not self._reading:
            self._loop.add_reader(self._fileno, self.read)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._fileno)
        self._reading = wanted

    # ---- writing

    def _send(self, data: bytes) -> None:
        if self.closed:
            return
        rest = memoryview(data)
        if not self._out:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._loop.call_soon(self.close, os.strerror(error.errno or 0))
                return
            if sent == len(data):
                return
            rest = rest[sent:]
            self._loop.add_writer(self._fileno, self._writable)
        self._out.append(rest)
        self._backlog += len(rest)
        self._regulate()

    def _writable(self) -> None:
        try:
            while self._out:
                rest = self._out[0]
                count = self._sock.send(rest)
                self._backlog -= count
                if count < len(rest):
                    self._out[0] = rest[count:]
                    return
                self._out.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(os.strerror(error.errno or 0))
            return
        self._loop.remove_writer(self._fileno)
        self._regulate()

    # ---- the end

    def close(self, why: str = "closed") -> None:
        """End the connection; who waits for a reply gets :class:`Gone`. May be called twice."""
        if self.closed:
            return
        self.closed = True
        self._regulate()
        self._loop.remove_writer(self._fileno)
        hang_up(self._sock)
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._out.clear()
        asked = [*(future for _, future in self._waiting.values()), *self._queue]
        self._waiting.clear()
        self._queue.clear()
        for future in asked:
            if not future.done():
                future.set_exception(Gone(why))
        if self._drained is not None:
            self._drained.set()
        self._handler.lost(why)


def hang_up(sock: socket.socket) -> None:
    """Close a connection so that the other side reads an end, also when something of it has not been read here.

    Else it would read ECONNRESET, over which QEMU 11.1 fails an assertion.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # nothing more comes in
        while sock.recv(1 << 16):
            pass
    sock.close()
