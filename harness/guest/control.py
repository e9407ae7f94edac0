"""The control port: readiness, identity and signs of life, as lines of text (docs/architecture.md, "The guest")."""

from __future__ import annotations

import base64
import secrets
import socket
import time
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError

_ENTROPY_BYTES = 32
_MAX_LINE = 64 * 1024
_WRITE_SECONDS = 5.0


class PortClosedError(HarnessError):
    """The other end of the port is gone: QEMU has ended. The caller finds out why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a guest this run's guest.

    Args:
        nonce: 32 hex digits, made for this guest; it must come back.
        host_key: the host key that its SSH server must show: ``ssh-ed25519 BASE64``.
        hello: the guest's first line without its first word: kernel release and uptime in seconds.
    """

    nonce: str
    host_key: str
    hello: str


@dataclass(frozen=True, slots=True)
class HostKey:
    """The key pair of a guest's SSH server, made on the host.

    Args:
        public: ``ssh-ed25519 BASE64``.
        secret: the private key in dropbear's file format, base64.
    """

    public: str
    secret: str


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How the worker ended.

    Args:
        status: its exit status, negative for a signal.
        stderr: the end of what it wrote to standard error.
    """

    status: int
    stderr: str

    @property
    def message(self) -> str:
        """One line for people."""
        last = f": {self.stderr.splitlines()[-1]}" if self.stderr.strip() else ""
        how = f"by signal {-self.status}" if self.status < 0 else f"with exit status {self.status}"
        return f"the worker in the guest ended {how}{last}"


def _worker_end(line: str) -> WorkerEnd:
    words = line.split(" ")
    stderr = base64.b64decode(words[3]) if len(words) > 3 else b""
    return WorkerEnd(int(words[2]), stderr.decode("utf-8", errors="replace"))


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
            TimeoutError: the guest does not take it.
            PortClosedError: QEMU has ended.
        """
        self._write(text.encode() + b"\n", Deadline.after(_WRITE_SECONDS))

    def _write(self, data: bytes, deadline: Deadline) -> None:
        try:
            self._sock.settimeout(max(deadline.remaining, 0.001))
            self._sock.sendall(data)
        except TimeoutError:
            raise
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

    def send_payload(self, payload: bytes, deadline: Deadline) -> None:
        """Send the payload and wait until the guest's side of the harness runs.

        Args:
            payload: a tar archive.
            deadline: until when it must run.

        Raises:
            InfrastructureError: the guest's side says why it does not run.
            TimeoutError, PortClosedError: as :meth:`read_line`.
        """
        self.write_line(f"payload {len(payload)}")
        self._write(payload, deadline)
        self._expect("up", deadline)

    def prepare(self, deadline: Deadline) -> None:
        """Wait until the worker has loaded all its modules and waits for its client.

        Raises:
            InfrastructureError: the worker ended instead; the message has what it said last.
            TimeoutError, PortClosedError: as :meth:`read_line`.
        """
        self.write_line("prepare")
        self._expect("prepared", deadline)

    def worker_end(self, deadline: Deadline) -> WorkerEnd | None:
        """How the worker ended; None when it runs.

        Raises:
            TimeoutError, PortClosedError: as :meth:`read_line`.
        """
        self.write_line("worker")
        while True:
            line = self.read_line(deadline)
            if line == "worker running":
                return None
            if line.startswith("worker ended "):
                return _worker_end(line)

    def _expect(self, word: str, deadline: Deadline) -> None:
        while (line := self.read_line(deadline)) != word:
            if line.startswith("failed "):
                raise InfrastructureError(line.removeprefix("failed "))
            if line.startswith("worker ended "):
                end = _worker_end(line)
                raise InfrastructureError(end.message, context={"worker": end.stderr})

    def identify(self, hello: str, host_key: HostKey, public_key: str, deadline: Deadline) -> Identity:
        """Make the guest this run's guest: nonce, clock, entropy and SSH keys; wait until it is ready.

        Args:
            hello: what :meth:`wait_hello` gave.
            host_key: the key pair that its SSH server shall have.
            public_key: ``ssh-ed25519 BASE64`` of the key that may log in.
            deadline: until when it must be ready.

        Raises:
            InfrastructureError: a guest answered with another nonce: it is not the one that was started.
            TimeoutError, PortClosedError: as :meth:`read_line`.
        """
        nonce = secrets.token_hex(16)
        entropy = secrets.token_hex(_ENTROPY_BYTES)
        self.write_line(f"identity {nonce} {time.time():.6f} {entropy} {host_key.secret} {public_key}")
        while True:
            words = self.read_line(deadline).split(" ", 1)
            if words[0] != "ready":
                continue
            if words[1:] != [nonce]:
                raise InfrastructureError("a guest answered that does not know this run's nonce")
            return Identity(nonce=nonce, host_key=host_key.public, hello=hello)

    def ping(self, deadline: Deadline) -> bool:
        """True when the guest answers before the deadline, False when it does not.

        Raises:
            PortClosedError: QEMU has ended.
        """
        token = secrets.token_hex(4)
        try:
            self.write_line(f"ping {token}")
            while self.read_line(deadline) != f"pong {token}":
                pass
        except TimeoutError:
            return False
        return True
