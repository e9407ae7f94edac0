"""The host's end of the worker: one JSON request a line, one JSON answer a line, over one SSH channel."""

from __future__ import annotations

import json
from typing import Any

from harness.deadline import Deadline
from harness.errors import GuestLost, InfrastructureError
from harness.guest.ssh import SshConnection

# On the guest's loopback; the same number as in harness/agent/supervisor.py.
WORKER_PORT = 1
_CHUNK = 64 * 1024
_MAX_LINE = 64 * 1024 * 1024


class WorkerLostError(GuestLost):
    """The worker's channel ended; the guest can say why (``ControlPort.worker_end``)."""


class Worker:
    """The worker process in the guest, which runs already.

    Args:
        ssh: the guest's connection.
        nonce: the guest's nonce, which the worker must repeat.
        deadline: until when its greeting must be there.

    Raises:
        InfrastructureError: it answered with another nonce.
        GuestLost: it does not run, or the connection ended.
        TimeoutError: no greeting before the deadline.
    """

    def __init__(self, ssh: SshConnection, nonce: str, deadline: Deadline) -> None:
        self._buffer = b""
        try:
            self._channel = ssh.connect(WORKER_PORT, deadline)
        except GuestLost as error:
            raise WorkerLostError(error.message) from error
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
            raise WorkerLostError("the worker's connection ended") from error
        return self._read(deadline)

    def _read(self, deadline: Deadline) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            if deadline.expired:
                raise TimeoutError("the worker did not answer")
            self._channel.settimeout(max(deadline.remaining, 0.001))
            data = self._channel.recv(_CHUNK)
            if not data:
                raise WorkerLostError("the worker's connection ended")
            self._buffer += data
            if len(self._buffer) > _MAX_LINE:
                raise InfrastructureError("the worker sent an endless line")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise InfrastructureError(f"the worker sent something that is no JSON: {line[:200]!r}") from error
        if not isinstance(answer, dict):
            raise InfrastructureError(f"the worker sent something that is no JSON object: {line[:200]!r}")
        return answer
