"""The host's end of the worker: one JSON request a line, one JSON answer a line, over one SSH channel."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import paramiko

from harness.deadline import Deadline
from harness.errors import GuestLost, InfrastructureError
from harness.guest.payload import GUEST_FOLDER
from harness.guest.ssh import SshConnection

_CHUNK = 64 * 1024
_MAX_LINE = 64 * 1024 * 1024


class Worker:
    """A running worker process in the guest.

    Args:
        ssh: the guest's connection.
        nonce: the guest's nonce, which the worker must repeat.
        stderr: a file on the host for what the worker prints beside its answers.
        deadline: until when its greeting must be there.

    Raises:
        InfrastructureError: the worker did not start, or answered with another nonce.
        GuestLost: the connection ended.
        TimeoutError: no greeting before the deadline.
    """

    def __init__(self, ssh: SshConnection, nonce: str, stderr: Path, deadline: Deadline) -> None:
        self._buffer = b""
        self._stderr = stderr
        command = f"cd {GUEST_FOLDER} && exec python3 -I -S {GUEST_FOLDER}/harness/agent/worker.py {shlex.quote(nonce)}"
        self._channel: paramiko.Channel = ssh.open(command, deadline)
        hello = self._read(deadline)
        if hello.get("nonce") != nonce:
            raise InfrastructureError("the worker in the guest answered with another run's nonce")
        self.python = str(hello.get("python", ""))
        self.kinds = frozenset(str(kind) for kind in hello.get("kinds", []))

    def request(self, kind: str, args: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Have one step done and give its answer.

        Raises:
            TimeoutError: no answer before the deadline.
            GuestLost: the worker or the connection ended.
        """
        line = json.dumps({"kind": kind, "args": args}) + "\n"
        try:
            self._channel.settimeout(max(deadline.remaining, 0.001))
            self._channel.sendall(line.encode())
        except TimeoutError:
            raise
        except OSError as error:
            raise self._ended() from error
        return self._read(deadline)

    def _read(self, deadline: Deadline) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if deadline.expired:
                raise TimeoutError("the worker did not answer")
            self._save_stderr()
            self._channel.settimeout(max(deadline.remaining, 0.001))
            data = self._channel.recv(_CHUNK)
            if not data:
                raise self._ended()
            self._buffer += data
            if len(self._buffer) > _MAX_LINE:
                raise InfrastructureError("the worker sent an endless line")
        line, _, self._buffer = self._buffer.partition(b"\n")
        self._save_stderr()
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise InfrastructureError(f"the worker sent something that is no JSON: {line[:200]!r}") from error
        if not isinstance(answer, dict):
            raise InfrastructureError(f"the worker sent something that is no JSON object: {line[:200]!r}")
        return answer

    def _save_stderr(self) -> None:
        while self._channel.recv_stderr_ready():
            with self._stderr.open("ab") as file:
                file.write(self._channel.recv_stderr(_CHUNK))

    def _ended(self) -> GuestLost:
        self._save_stderr()
        status = self._channel.recv_exit_status() if self._channel.exit_status_ready() else None
        how = "the connection is gone" if status in (None, -1) else f"its exit status is {status}"
        said = self._stderr.read_text(encoding="utf-8", errors="replace") if self._stderr.exists() else ""
        context = {"worker": "\n".join(said.splitlines()[-20:])}
        last = f": {said.splitlines()[-1]}" if said.strip() else ""
        return GuestLost(f"the worker in the guest ended ({how}){last}", context=context)

    def close(self) -> None:
        """End the worker by ending its input."""
        self._channel.close()
