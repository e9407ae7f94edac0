"""Copies bytes between the SSH port and the SSH server in both directions, without ever waiting."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_CHUNK = 32 * 1024
_LIMIT = 256 * 1024
"""Bytes that may wait for a slow reader before the other side is no longer read."""
_SHUT_WR = 1


class Relay:
    """One connection.

    When the port ends (the host is gone) the server is told, and the connection ends when the server has closed it.
    When the server ends, what it sent is written and the connection ends; a port knows no half-closed state.

    Args:
        port: Descriptor of the port.
        server: A connected socket. Both are closed by `close`.
    """

    def __init__(self, port: int, server: socket.socket) -> None:
        self._port, self._socket = port, server
        self._server = server.fileno()
        self._to_port, self._to_server = bytearray(), bytearray()
        self._port_ended = self._server_ended = False
        os.set_blocking(port, False)
        os.set_blocking(self._server, False)

    def interests(self) -> list[tuple[int, int]]:
        """Return (descriptor, poll mask) for what there is to wait for."""
        port = select.POLLOUT if self._to_port else 0
        if not self._port_ended and len(self._to_server) < _LIMIT:
            port |= select.POLLIN
        server = select.POLLOUT if self._to_server else 0
        if len(self._to_port) < _LIMIT:
            server |= select.POLLIN
        # An end that is gone would report it for ever.
        ends = ((self._server, server, self._server_ended), (self._port, port, self._port_ended))
        return [(fd, mask) for fd, mask, ended in ends if not ended]

    def step(self, fd: int, ready: int) -> bool:
        """Move what is ready at one end.

        Returns:
            False when the connection has ended and nothing is left to write.
        """
        can_read = ready & (select.POLLIN | select.POLLHUP | select.POLLERR)
        if fd == self._port and can_read and not self._port_ended:
            data = _read(fd)
            if data:
                self._to_server += data
            elif data is not None:
                self._port_ended = True
        elif fd == self._server and can_read and not self._server_ended:
            data = _read(fd)
            if data:
                self._to_port += data
            elif data is not None:
                self._server_ended = True
        self._flush()
        return not (self._server_ended and (self._port_ended or not self._to_port))

    def _flush(self) -> None:
        if not _write(self._port, self._to_port):
            self._port_ended = True
        if not _write(self._server, self._to_server):
            self._server_ended = True
        if self._port_ended:
            self._to_port.clear()
            if not self._to_server and not self._server_ended:
                try:
                    self._socket.shutdown(_SHUT_WR)
                except OSError:
                    self._server_ended = True

    def close(self) -> None:
        """Close both ends; QEMU tells the host that the port was closed."""
        os.close(self._port)
        self._socket.close()


def _read(fd: int) -> bytes | None:
    """Return what has come, nothing at the end, or None when there is nothing now."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _write(fd: int, pending: bytearray) -> bool:
    """Write as much as is taken, and take it out of `pending`; returns False when the other side is gone."""
    try:
        while pending:
            del pending[: os.write(fd, pending[:_CHUNK])]
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True
