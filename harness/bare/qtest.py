"""QEMU's qtest protocol: a command a line, an answer a line, over a socket pair with QEMU at the other end.

Accesses go to the machine as the processor's would: physical memory with the devices' registers in it, and I/O ports.
"""

from __future__ import annotations

import socket

from harness.deadline import Deadline
from harness.errors import GuestHang, InfrastructureError

_CHUNK = 64 * 1024


class QtestClosed(InfrastructureError):
    """QEMU ended the connection."""


class Qtest:
    """The client.

    Args:
        sock: a connected socket; owned.
        deadline: until when every answer must have come.

    Attributes:
        answered: QEMU has answered at least once: it has started.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._buffer = b""
        self.deadline = deadline
        self.answered = False

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def command(self, words: str) -> str:
        """Send one command and give what stands behind ``OK``.

        Raises:
            QtestClosed: QEMU ended.
            GuestHang: no answer before the deadline.
            InfrastructureError: QEMU refused the command.
        """
        try:
            self._sock.settimeout(max(self.deadline.remaining, 0.001))
            self._sock.sendall(words.encode() + b"\n")
            answer = self._line()
            while answer.startswith("IRQ "):  # nothing here asks for them
                answer = self._line()
        except TimeoutError:
            raise GuestHang(f"QEMU did not answer '{words}' within {self.deadline.budget:g} s") from None
        except OSError as error:
            raise QtestClosed(f"QEMU ended at '{words[:60]}': {error.strerror}") from error
        self.answered = True
        if answer != "OK" and not answer.startswith("OK "):
            raise InfrastructureError(f"QEMU refused '{words[:60]}': {answer}")
        return answer[3:]

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            data = self._sock.recv(_CHUNK)
            if not data:
                raise QtestClosed("QEMU ended the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("ascii", errors="replace").rstrip()

    def read32(self, address: int) -> int:
        """Read 32 bits; errors as :meth:`command`, here and below."""
        return int(self.command(f"readl {address:#x}"), 16)

    def read64(self, address: int) -> int:
        """Read 64 bits."""
        return int(self.command(f"readq {address:#x}"), 16)

    def write16(self, address: int, value: int) -> None:
        """Write 16 bits."""
        self.command(f"writew {address:#x} {value:#x}")

    def write32(self, address: int, value: int) -> None:
        """Write 32 bits."""
        self.command(f"writel {address:#x} {value:#x}")

    def write64(self, address: int, value: int) -> None:
        """Write 64 bits."""
        self.command(f"writeq {address:#x} {value:#x}")

    def out8(self, port: int, value: int) -> None:
        """Write 8 bits to an I/O port."""
        self.command(f"outb {port:#x} {value:#x}")

    def out32(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port."""
        self.command(f"outl {port:#x} {value:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes, >= 1."""
        return bytes.fromhex(self.command(f"read {address:#x} {size:#x}").removeprefix("0x"))

    def write(self, address: int, data: bytes) -> None:
        """Write bytes, at least one."""
        self.command(f"write {address:#x} {len(data):#x} 0x{data.hex()}")
