from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# What the supervisor does, in a process that the test started: descriptors and the nonce's file are arguments.
_PROGRAM = """
import socket, sys
payload, listener, loaded, nonce = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
sys.path.insert(0, payload)
from harness.agent.worker import run
run(socket.socket(fileno=listener), loaded, nonce)
"""


class WorkerProcess:
    """A worker in a process of its own, laid out as in the guest, and its one client."""

    def __init__(self, payload: Path, nonce: str = "nonce1") -> None:
        (payload / "nonce").write_text(nonce)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.loaded, loaded = os.pipe()
        arguments = [str(payload), str(self._listener.fileno()), str(loaded), str(payload / "nonce")]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=payload,
            env={"PATH": "/usr/bin:/bin"},
            pass_fds=[self._listener.fileno(), loaded],
        )
        os.close(loaded)
        self.greeting: dict[str, Any] = {}
        if os.read(self.loaded, 1):
            self.connect()

    def connect(self) -> None:
        """Become the worker's client."""
        self._socket = socket.create_connection(self._listener.getsockname())
        self._file = self._socket.makefile("rwb")
        self.greeting = json.loads(self._file.readline())

    def raw(self, line: bytes) -> dict[str, Any]:
        self.send(line)
        answer: dict[str, Any] = json.loads(self._file.readline())
        return answer

    def send(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        self._file.flush()

    def ask(self, kind: str, **args: Any) -> dict[str, Any]:
        return self.raw(json.dumps({"kind": kind, "args": args}).encode())

    def leave(self) -> None:
        """Go, as a client; may be called twice."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()

    def end(self) -> tuple[int, bytes, bytes]:
        """End the worker; returns the exit status and what was left on both outputs."""
        self.process.kill()
        return self.wait()

    def wait(self) -> tuple[int, bytes, bytes]:
        """Wait for the worker to end by itself; returns as `end`."""
        out, err = self.process.communicate(timeout=30)
        if self.greeting:
            self.leave()
        self._listener.close()
        os.close(self.loaded)
        return self.process.returncode, out, err
