"""The server of one function: a listening socket, and the commands of the client that has connected."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from harness.device import config, wire
from harness.device.connection import Connection, Refused, unknown
from harness.device.mirror import Overlap
from harness.device.model import Model
from harness.device.wire import Command

_REGIONS, _IRQS = 9, 5
_CONFIG_REGION, _MSIX_IRQ = 7, 2
_READABLE, _WRITABLE = 1, 2
_RESETTABLE, _PCI = 1, 2
_EVENTFD = 1
_UCRED: Final = struct.Struct("=iII")


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
        self._serve = {
            Command.VERSION: self._version,
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
        loop.add_reader(listener.fileno(), self._accept)

    @property
    def connected(self) -> bool:
        """Whether there is a client."""
        return self._connection is not None

    # ---- clients

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        problem = "another client is connected" if self._connection else _stranger(sock)
        if problem:
            self._note(problem)
            sock.close()
            return
        self._connection = Connection(sock, self, self._loop)
        self.model.attached(self._connection)

    def lost(self, why: str) -> None:
        """The client has gone."""
        self._note(why)
        self._connection = None
        self.model.detached()
        self.on_lost()

    def _note(self, why: str) -> None:
        print(f"{self.model.name}: {why}", file=sys.stderr, flush=True)
        self.refused.append(why)
        del self.refused[:-100]

    def vanish(self) -> None:
        """Drop the client in the middle of whatever it does, and take no other."""
        self.close()

    def close(self) -> None:
        """End it; may be called twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        if self._connection is not None:
            self._connection.close()

    # ---- commands

    def command(self, command: int, body: bytes, fds: list[int]) -> tuple[bytes, Callable[[], None] | None]:
        """Do what the client asks for; see :class:`harness.device.connection.Handler`."""
        if command == Command.REGION_WRITE:
            return self._write(body)
        serve = self._serve.get(command)  # type: ignore[call-overload]  # a number that is no Command finds nothing
        if serve is None:
            raise unknown(command)
        return serve(body, fds), None

    def _version(self, body: bytes, _fds: list[int]) -> bytes:
        return wire.version_reply(body)

    def _device_info(self, body: bytes, _fds: list[int]) -> bytes:
        _unpack(wire.DEVICE_INFO, body)
        return wire.DEVICE_INFO.pack(wire.DEVICE_INFO.size, _RESETTABLE | _PCI, _REGIONS, _IRQS)

    def _region_info(self, body: bytes, _fds: list[int]) -> bytes:
        _, _, index, _, _, _ = _unpack(wire.REGION_INFO, body)
        if index >= _REGIONS:
            raise Refused(errno.EINVAL, f"there is no region {index}")
        region = self.model.region(index)
        size = config.SIZE if index == _CONFIG_REGION else region[0] if region else 0
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
        if index != _MSIX_IRQ or not flags & wire.IRQ_ACTION_TRIGGER:
            raise Refused(errno.EINVAL, f"interrupts of the kind {index} cannot be set with the flags {flags:#x}")
        if flags & wire.IRQ_DATA_NONE and count == 0:
            self.model.set_interrupts(0, self.model.identity.vectors, [])
        else:
            self.model.set_interrupts(start, count, fds)
        return b""

    def _map(self, body: bytes, _fds: list[int]) -> bytes:
        _, flags, _, address, size = _unpack(wire.MAP, body)
        try:
            self.model.mirror.add(address, size, flags & 3)
        except Overlap as error:
            raise Refused(errno.EEXIST, str(error)) from None
        except ValueError as error:
            raise Refused(errno.EINVAL, str(error)) from None
        return b""

    def _unmap(self, body: bytes, _fds: list[int]) -> bytes:
        _, flags, address, size = _unpack(wire.UNMAP, body)
        if flags & wire.UNMAP_ALL:
            self.model.mirror.clear()
        else:
            self.model.mirror.remove(address, size)
        return body[: wire.UNMAP.size]

    def _place(self, body: bytes) -> tuple[int, int, int]:
        offset, region, count = _unpack(wire.REGION_ACCESS, body)
        found = self.model.region(region)
        size = config.SIZE if region == _CONFIG_REGION else found[0] if found else 0
        if offset + count > size:
            raise Refused(errno.EINVAL, f"{count} bytes at {offset:#x} of region {region}, which has {size:#x}")
        return offset, region, count

    def _read(self, body: bytes, _fds: list[int]) -> bytes:
        offset, region, count = self._place(body)
        found = self.model.region(region)
        read = self.model.config.read if found is None else found[1]
        return body[: wire.REGION_ACCESS.size] + read(offset, count)

    def _write(self, body: bytes) -> tuple[bytes, Callable[[], None]]:
        offset, region, count = self._place(body)
        data = body[wire.REGION_ACCESS.size :]
        if len(data) != count:
            raise Refused(errno.EINVAL, f"{len(data)} bytes, announced were {count}")
        found = self.model.region(region)
        write = self.model.config.write if found is None else found[2]
        return body[: wire.REGION_ACCESS.size], lambda: write(offset, data)

    def _reset(self, _body: bytes, _fds: list[int]) -> bytes:
        self.model.reset()
        self.model.config.reset()
        return b""


def _unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise Refused(errno.EINVAL, f"a body of {len(body)} bytes, {layout.size} are needed")
    return layout.unpack_from(body)


def _stranger(sock: socket.socket) -> str:
    """Why a client is none of ours; empty when it is: another user's process."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return "" if uid == os.geteuid() else f"a client of the user {uid}"
