from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class WorkerProcess:
    """A worker in a process of its own, laid out as in the guest."""

    def __init__(self, payload: Path, nonce: str = "nonce1") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", f"{payload}/harness/agent/worker.py", nonce],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=payload,
            env={"PATH": "/usr/bin:/bin"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.greeting: dict[str, Any] = json.loads(self.stdout.readline())

    def raw(self, line: bytes) -> dict[str, Any]:
        self.stdin.write(line + b"\n")
        self.stdin.flush()
        answer: dict[str, Any] = json.loads(self.stdout.readline())
        return answer

    def ask(self, kind: str, **args: Any) -> dict[str, Any]:
        return self.raw(json.dumps({"kind": kind, "args": args}).encode())

    def end(self) -> tuple[int, bytes, bytes]:
        """End the input; returns the exit status and what was left on both outputs."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err
