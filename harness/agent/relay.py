"""Copies bytes between two descriptors in both directions, without ever waiting."""

from __future__ import annotations

import os
import select

_CHUNK = 32 * 1024
_LIMIT = 256 * 1024
"""Bytes that may wait for a slow reader before the other side is no longer read."""


class Relay:
    """One connection between the SSH port and the SSH server.

    A virtio-serial port knows no half-closed state, so the end of either side is the end of both, after what has been
    read was written.

    Args:
        port: Descriptor of the port.
        server: Descriptor of a connected socket. Both are closed by `close`, and are set to not wait.
    """

    def __init__(self, port: int, server: int) -> None:
        self._ends = (port, server)
        self._pending = {port: bytearray(), server: bytearray()}
        self._ended = False
        for fd in self._ends:
            os.set_blocking(fd, False)

    def interests(self) -> list[tuple[int, int]]:
        """Return (descriptor, poll mask) for both ends."""
        wanted = []
        for fd, other in (self._ends, self._ends[::-1]):
            mask = select.POLLOUT if self._pending[fd] else 0
            if not self._ended and len(self._pending[other]) < _LIMIT:
                mask |= select.POLLIN
            wanted.append((fd, mask))
        return wanted

    def step(self, fd: int, ready: int) -> bool:
        """Move what is ready at one end.

        Returns:
            False when the connection has ended and nothing is left to write.
        """
        other = self._ends[1] if fd == self._ends[0] else self._ends[0]
        if ready & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._ended:
            data = _read(fd)
            if data is not None:
                self._pending[other] += data
                self._ended = not data
                self._flush(other)
        if ready & select.POLLOUT:
            self._flush(fd)
        return not self._ended or any(self._pending.values())

    def _flush(self, fd: int) -> None:
        pending = self._pending[fd]
        try:
            while pending:
                del pending[: os.write(fd, pending[:_CHUNK])]
        except BlockingIOError:
            return
        except OSError:
            pending.clear()
            self._ended = True

    def close(self) -> None:
        """Close both ends; QEMU tells the host that the port was closed."""
        for fd in self._ends:
            os.close(fd)


def _read(fd: int) -> bytes | None:
    """Return what has come, nothing at the end, or None when there is nothing now."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""
