"""The control port: readiness, identity and signs of life, as lines of text (docs/architecture.md, "The guest")."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError

_ENTROPY_BYTES = 32
_MAX_LINE = 64 * 1024


class PortClosedError(HarnessError):
    """The other end of the port is gone: QEMU has ended. The caller finds out why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a guest this run's guest.

    Args:
        nonce: 32 hex digits, made for this guest; it must come back.
        host_key: the guest's SSH host key as it told it: ``ssh-ed25519 BASE64``.
        hello: the guest's first line without its first word: kernel release and uptime in seconds.
    """

    nonce: str
    host_key: str
    hello: str


class ControlPort:
    """The host's end of the control port.

    Args:
        sock: a connected socket; this object does not close it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""

    def read_line(self, deadline: Deadline) -> str:
        """The next line without its end.

        Raises:
            TimeoutError: no whole line before the deadline; what has come is kept for the next call.
            PortClosedError: QEMU has ended.
        """
        while b"\n" not in self._buffer:
            if deadline.expired:
                raise TimeoutError("no line on the control port")
            self._sock.settimeout(max(deadline.remaining, 0.001))
            try:
                data = self._sock.recv(4096)
            except ConnectionError:
                data = b""
            if not data:
                raise PortClosedError("the control port was closed")
            self._buffer += data
            if len(self._buffer) > _MAX_LINE:
                raise InfrastructureError("the guest sent an endless line on its control port")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", errors="replace").strip()

    def write_line(self, text: str) -> None:
        """Send one line.

        Raises:
            PortClosedError: QEMU has ended.
        """
        try:
            self._sock.settimeout(5.0)
            self._sock.sendall(text.encode() + b"\n")
        except OSError as error:
            raise PortClosedError("the control port was closed") from error

    def wait_hello(self, deadline: Deadline) -> str:
        """Wait until user land is up; gives the rest of the ``hello`` line.

        Raises:
            TimeoutError, PortClosedError: as :meth:`read_line`.
        """
        while True:
            word, _, rest = self.read_line(deadline).partition(" ")
            if word == "hello":
                return rest

    def identify(self, hello: str, public_key: str, deadline: Deadline) -> Identity:
        """Give the guest its nonce, clock, entropy and SSH key, and wait until it is ready.

        Args:
            hello: what :meth:`wait_hello` gave.
            public_key: ``ssh-ed25519 BASE64`` of the key that may log in.
            deadline: until when it must be ready.

        Raises:
            InfrastructureError: a guest answered with another nonce: it is not the one that was started.
            TimeoutError, PortClosedError: as :meth:`read_line`.
        """
        nonce = secrets.token_hex(16)
        entropy = secrets.token_hex(_ENTROPY_BYTES)
        self.write_line(f"identity {nonce} {int(time.time())} {entropy} {public_key}")
        while True:
            words = self.read_line(deadline).split(" ", 2)
            if words[0] != "ready":
                continue
            if len(words) != 3 or words[1] != nonce:
                raise InfrastructureError("a guest answered that does not know this run's nonce")
            return Identity(nonce=nonce, host_key=words[2], hello=hello)

    def ping(self, deadline: Deadline) -> bool:
        """True when the guest answers before the deadline, False when it does not.

        Raises:
            PortClosedError: QEMU has ended.
        """
        token = secrets.token_hex(4)
        self.write_line(f"ping {token}")
        try:
            while self.read_line(deadline) != f"pong {token}":
                pass
        except TimeoutError:
            return False
        return True
