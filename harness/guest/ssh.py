"""One SSH connection for the life of a guest: paramiko over the guest's virtio-serial port.

There is one transport, its host key is known before the first byte, every wait has the deadline, and both output
streams are always drained: paramiko waits for ever when nobody reads a stream that has filled its window.
"""

from __future__ import annotations

import base64
import io
import logging
import select
import socket
import struct
import time
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from harness.deadline import Deadline
from harness.errors import GuestLost, InfrastructureError
from harness.guest.control import HostKey

_CHUNK = 32 * 1024
# How often a full window is tried again, and the longest wait for a stream that says nothing.
_SEND_SECONDS = 0.02
_WAIT_SECONDS = 1.0

# What the transport's thread has to say about a guest that dies belongs to the verdict, not on the terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest came to.

    Args:
        command: the command line.
        status: its exit status, 0 to 255, as the guest sent it.
        stdout: its standard output.
        stderr: its standard error.
        seconds: wall time.
    """

    command: str
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float


def make_key() -> paramiko.Ed25519Key:
    """A fresh Ed25519 key pair that never touches a disk."""
    private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return paramiko.Ed25519Key.from_private_key(io.StringIO(private.decode("ascii")))


def make_host_key() -> HostKey:
    """A fresh Ed25519 key pair for a guest's SSH server."""
    private = Ed25519PrivateKey.generate()
    seed = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    name = b"ssh-ed25519"
    head = struct.pack(">I", len(name)) + name
    # dropbear's file: the name as an SSH string, then one number, the length of both keys, and the two.
    secret = head + struct.pack(">I", len(seed) + len(public)) + seed + public
    shown = head + struct.pack(">I", len(public)) + public
    return HostKey(
        public=f"{name.decode()} {base64.b64encode(shown).decode()}", secret=base64.b64encode(secret).decode()
    )


def public_line(key: paramiko.PKey) -> str:
    """A key's public half as ``ssh-ed25519 BASE64``."""
    return f"{key.get_name()} {key.get_base64()}"


class SshConnection:
    """A logged-in SSH connection.

    Args:
        sock: the connected byte stream; closed by :meth:`close`.
        key: the private key that the guest lets in.
        host_key: the guest's host key, ``ssh-ed25519 BASE64``.
        deadline: until when the log-in must be done.

    Raises:
        GuestLost: the stream ended or the server did not speak SSH in time.
        InfrastructureError: the server has another host key, or does not let the key in.
    """

    def __init__(self, sock: socket.socket, key: paramiko.PKey, host_key: str, deadline: Deadline) -> None:
        sock.settimeout(None)
        self._transport = transport = paramiko.Transport(sock)
        transport.banner_timeout = transport.auth_timeout = transport.channel_timeout = max(deadline.remaining, 0.1)
        try:
            transport.start_client(timeout=max(deadline.remaining, 0.1))
            shown = transport.get_remote_server_key()
            wanted = base64.b64decode(host_key.split(" ")[1])
            if shown.asbytes() != wanted:
                raise InfrastructureError("the guest's SSH server shows another host key than the guest announced")
            transport.auth_publickey("root", key)
        except paramiko.AuthenticationException as error:
            self.close()
            raise InfrastructureError(f"the guest does not accept the key made for it: {error}") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise GuestLost(f"SSH to the guest failed: {error or type(error).__name__}") from error
        except InfrastructureError:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """True while the connection stands."""
        return self._transport.is_active()

    def open(self, command: str, deadline: Deadline) -> paramiko.Channel:
        """Start a command and give its channel.

        Raises:
            GuestLost: the connection is gone.
        """
        channel = self.channel(deadline)
        try:
            channel.exec_command(command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise GuestLost(f"SSH to the guest failed: {error or type(error).__name__}") from error
        return channel

    def channel(self, deadline: Deadline) -> paramiko.Channel:
        """A new session channel.

        Raises:
            TimeoutError: the guest did not answer before the deadline.
            GuestLost: the connection is gone.
        """
        return self._open("session", None, deadline)

    def connect(self, port: int, deadline: Deadline) -> paramiko.Channel:
        """A connection to a TCP port on the guest's own loopback.

        Raises:
            TimeoutError: the guest did not answer before the deadline.
            GuestLost: nobody listens there, or the connection is gone.
        """
        return self._open("direct-tcpip", ("127.0.0.1", port), deadline)

    def _open(self, kind: str, target: tuple[str, int] | None, deadline: Deadline) -> paramiko.Channel:
        origin = ("127.0.0.1", 0) if target else None
        try:
            return self._transport.open_channel(kind, target, origin, timeout=max(deadline.remaining, 0.1))
        except (paramiko.SSHException, OSError, EOFError) as error:
            if self.alive and deadline.expired:
                raise TimeoutError("the guest did not open an SSH channel in time") from error
            raise GuestLost(f"SSH to the guest failed: {error or type(error).__name__}") from error

    def run(self, command: str, deadline: Deadline, stdin: bytes = b"") -> CommandResult:
        """Run a command to its end.

        Args:
            command: a shell command line.
            deadline: until when it must have ended.
            stdin: what it reads.

        Raises:
            TimeoutError: it still runs at the deadline.
            GuestLost: the connection ended, or the guest sent no exit status.
        """
        started = time.monotonic()
        out, err = bytearray(), bytearray()
        with self.open(command, deadline) as channel:
            channel.settimeout(0.0)
            rest = memoryview(stdin)
            while True:
                rest = _send(channel, rest)
                # Whether all has come is asked before the streams are emptied: what came first is then not lost.
                ended = channel.closed or (channel.exit_status_ready() and channel.eof_received)
                _drain(channel, out, err)
                if ended:
                    break
                if deadline.expired:
                    raise TimeoutError(f"'{command}' did not end within {deadline.budget:g} s")
                select.select([channel], [], [], min(deadline.remaining, _SEND_SECONDS if rest else _WAIT_SECONDS))
            status = channel.recv_exit_status() if channel.exit_status_ready() else -1
        if status < 0:
            raise GuestLost(f"the guest sent no exit status for '{command}'")
        return CommandResult(command, status, bytes(out), bytes(err), time.monotonic() - started)

    def close(self) -> None:
        """End the connection; may be called twice."""
        self._transport.close()


def _send(channel: paramiko.Channel, rest: memoryview) -> memoryview:
    """Send as much as the window takes; ends the command's input after the last byte."""
    try:
        while rest:
            rest = rest[channel.send(bytes(rest[:_CHUNK])) :]
    except TimeoutError:
        return rest
    except OSError:
        return memoryview(b"")
    if not channel.eof_sent and not channel.closed:
        channel.shutdown_write()
    return rest


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    """Take what has come on both streams."""
    while channel.recv_ready():
        out += channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK)
