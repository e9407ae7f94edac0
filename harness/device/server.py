"""The server of one function: a listening socket, and the commands of the client that has connected."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from harness.device import config, wire
from harness.device.connection import Connection, Refused, hang_up
from harness.device.mirror import ALL, Overlap
from harness.device.model import Model
from harness.device.telling import tell
from harness.device.wire import Access, Command, ProtocolError

_REGIONS, _IRQS = 9, 5
_CONFIG_REGION, _MSIX_IRQ = 7, 2
_READABLE, _WRITABLE = 1, 2
_RESETTABLE, _PCI = 1, 2
_EVENTFD = 1
_READ_WRITE: Final = int(Access.READ | Access.WRITE)
_UCRED: Final = struct.Struct("=iII")
_FOR_NOW: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 1.0
_LONGEST_REASON: Final = 300  # characters: a client may have written them


class FunctionServer:
    """Serves one model to one client at a time.

    Attributes:
        model: what is served.
        refused: why clients were turned away, or lost by their own fault, oldest first.
    """

    def __init__(self, model: Model, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen.

        Args:
            model: what is served.
            listener: a listening unix socket; closed by :meth:`close`.
            loop: the running loop.
        """
        self.model = model
        self.refused: list[str] = []
        self.on_lost: Callable[[], None] = lambda: None
        self._listener: socket.socket | None = listener
        self._loop = loop
        self._connection: Connection | None = None
        self._spoken = False  # the client has said its version
        model.on_settling = self._hold
        self._serve: dict[int, Callable[[bytes, list[int]], bytes]] = {
            Command.DMA_MAP: self._map,
            Command.DMA_UNMAP: self._unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._read,
            Command.DEVICE_RESET: self._reset,
        }
        listener.setblocking(False)
        self._listen()

    @property
    def connected(self) -> bool:
        """Whether there is a client."""
        return self._connection is not None

    # ---- clients

    def _listen(self) -> None:
        if self._listener is not None:  # else it has been closed meanwhile
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError as error:
            self._cannot(error)
            return
        if self._connection is not None and self._connection.hung_up:
            self._connection.close("the client closed the connection")  # nobody has read so far yet
        problem = "another client is connected" if self._connection else _stranger(sock)
        if problem:
            self._note(problem)
            hang_up(sock)  # it may have spoken already
            return
        self._spoken = False
        self._connection = Connection(sock, self, self._loop)
        self._connection.hold(self.model.settling)
        self.model.attached(self._connection)

    def _cannot(self, error: OSError) -> None:
        """Nothing could be accepted: look again later where that may pass, as it waits in the listener until then."""
        why = os.strerror(error.errno or 0)
        if error.errno not in _FOR_NOW or self._listener is None:
            self._note(f"no client can be taken any more: {why}")
            self._deafen()
            return
        said = f"no client can be taken for now: {why}"
        if self.refused[-1:] != [said]:
            self._note(said)
        self._loop.remove_reader(self._listener.fileno())
        self._loop.call_later(_RETRY_SECONDS, self._listen)

    def _hold(self, settling: bool) -> None:
        if self._connection is not None:
            self._connection.hold(settling)

    def failed(self, error: BaseException) -> None:
        """The model raised an exception where it must not."""
        self.model.failed(error)

    def lost(self, why: str) -> None:
        """The client has gone."""
        if self._listener is not None:  # else it is we who go
            self._note(why)
        self._connection = None
        self.model.detached()
        self.on_lost()

    def _note(self, why: str) -> None:
        why = why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}..."
        tell(f"{self.model.name}: {why}")
        self.refused.append(why)
        del self.refused[:-100]

    async def vanish(self) -> None:
        """Drop the client as soon as it has answered what it has been asked for, and take no other."""
        self._deafen()
        if self._connection is not None:
            await self._connection.drain(_DRAIN_SECONDS)
        self.close()

    def close(self) -> None:
        """Drop the client in the middle of whatever it does, and take no other. May be called twice."""
        self._deafen()
        if self._connection is not None:
            self._connection.close()

    def _deafen(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener.fileno())
            listener.close()

    # ---- commands

    def command(self, command: int, body: bytes, fds: list[int]) -> tuple[bytes, Callable[[], None] | None]:
        """Do what the client asks for; see :class:`harness.device.connection.Handler`."""
        if not self._spoken:
            return self._version(command, body), None
        if command == Command.REGION_WRITE:
            return self._write(body)
        serve = self._serve.get(command)
        if serve is None:
            raise Refused(errno.ENOSYS, f"the command {command} is not known, or not at this time")
        return serve(body, fds), None

    def _version(self, command: int, body: bytes) -> bytes:
        if command != Command.VERSION:
            raise ProtocolError(f"the first message is the command {command}, not the version")
        said = wire.version(body)
        self._spoken = True
        if self._connection is not None:
            self._connection.max_transfer = said.max_transfer
        return wire.version_reply()

    def _device_info(self, body: bytes, _fds: list[int]) -> bytes:
        _unpack(wire.DEVICE_INFO, body)
        return wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, _RESETTABLE | _PCI, _REGIONS, _IRQS)

    def _region_info(self, body: bytes, _fds: list[int]) -> bytes:
        _, _, index, _, _, _ = _unpack(wire.REGION_INFO, body)
        if index >= _REGIONS:
            raise Refused(errno.EINVAL, f"there is no region {index}")
        size = self._region(index)[0]
        flags = _READABLE | _WRITABLE if size else 0
        return wire.REGION_INFO.pack(wire.REGION_INFO.size, flags, index, 0, size, 0)

    def _irq_info(self, body: bytes, _fds: list[int]) -> bytes:
        _, _, index, _ = _unpack(wire.IRQ_INFO, body)
        if index >= _IRQS:
            raise Refused(errno.EINVAL, f"there is no kind {index} of interrupts")
        count = self.model.identity.vectors if index == _MSIX_IRQ else 0
        return wire.IRQ_INFO.pack(wire.IRQ_INFO.size, _EVENTFD if count else 0, index, count)

    def _set_irqs(self, body: bytes, fds: list[int]) -> bytes:
        _, flags, index, start, count = _unpack(wire.SET_IRQS, body)
        model, vectors = self.model, self.model.identity.vectors
        if index != _MSIX_IRQ:
            raise Refused(errno.EINVAL, f"there are no interrupts of the kind {index}")
        if flags == wire.IRQ_ACTION_TRIGGER | wire.IRQ_DATA_EVENTFD and count:
            model.set_interrupts(start, count, fds)
        elif flags != wire.IRQ_ACTION_TRIGGER | wire.IRQ_DATA_NONE or fds or start + count > vectors:
            raise Refused(errno.EINVAL, f"{count} interrupts from {start} cannot be set with the flags {flags:#x}")
        elif count == 0:
            model.set_interrupts(0, vectors, [])
        else:
            for vector in range(start, start + count):  # the client tries them out
                model.interrupt(vector)
        return b""

    def _map(self, body: bytes, _fds: list[int]) -> bytes:
        _, flags, _, address, size = _unpack(wire.MAP, body)
        if not flags or flags & ~_READ_WRITE:
            raise Refused(errno.EINVAL, f"a mapping with the flags {flags:#x}")
        _whole_pages(address, size)
        try:
            self.model.mirror.add(address, size, flags)
        except Overlap as error:
            raise Refused(errno.EEXIST, str(error)) from None
        return b""

    def _unmap(self, body: bytes, _fds: list[int]) -> bytes:
        _, flags, address, size = _unpack(wire.UNMAP, body)
        if flags & ~wire.UNMAP_ALL:
            raise Refused(errno.EINVAL, f"an unmapping with the flags {flags:#x}; dirty pages are not tracked")
        if not flags:
            _whole_pages(address, size)
            self.model.mirror.remove(address, size)
        elif address or size:
            raise Refused(errno.EINVAL, "an unmapping of everything that names a range")
        else:
            self.model.mirror.clear()
        return body

    def _place(self, body: bytes) -> tuple[int, int, int]:
        """Region, offset and count of an access that is inside; what carries the data is checked by who reads it."""
        head = body[: wire.REGION_ACCESS.size]
        offset, region, count = _unpack(wire.REGION_ACCESS, head)
        size = self._region(region)[0]
        if not 1 <= count <= wire.MAX_TRANSFER or offset + count > size:
            raise Refused(errno.EINVAL, f"{count} bytes at {offset:#x} of region {region}, which has {size:#x}")
        return region, offset, count

    def _region(self, index: int) -> tuple[int, Callable[[int, int], bytes], Callable[[int, bytes], None]]:
        """Size, read and write of a region; a size of 0 when there is none."""
        space = self.model.config
        if index == _CONFIG_REGION:
            return config.SIZE, space.read, space.write
        return self.model.region(index) or (0, space.read, space.write)

    def _read(self, body: bytes, _fds: list[int]) -> bytes:
        region, offset, count = self._place(body)
        _exactly(body, wire.REGION_ACCESS.size)
        return body + self._region(region)[1](offset, count)

    def _write(self, body: bytes) -> tuple[bytes, Callable[[], None]]:
        region, offset, count = self._place(body)
        _exactly(body, wire.REGION_ACCESS.size + count)
        data = body[wire.REGION_ACCESS.size :]
        return body[: wire.REGION_ACCESS.size], partial(self._region(region)[2], offset, data)

    def _reset(self, body: bytes, _fds: list[int]) -> bytes:
        _exactly(body, 0)
        self.model.reset()
        self.model.config.reset()
        return b""


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    _exactly(body, layout.size)
    return layout.unpack(body)


def _whole_pages(address: int, size: int) -> None:
    if not size or (address | size) % wire.PAGE or address + size > ALL:
        raise Refused(errno.EINVAL, f"{size:#x} bytes at {address:#x} are no pages within 64 bits")


def _exactly(body: bytes, size: int) -> None:
    if len(body) != size:
        raise Refused(errno.EINVAL, f"a body of {len(body)} bytes, where {size} belong")


def _stranger(sock: socket.socket) -> str:
    """Why a client is none of ours; empty when it is: another user's process."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return "" if uid == os.geteuid() else f"a client of the user {uid}"
