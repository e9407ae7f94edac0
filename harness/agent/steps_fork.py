"""The step in which a child process runs steps."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from harness.agent.execute import execute
from harness.agent.outcome import ChildFailed, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from harness.agent.context import Context
    from harness.agent.registry import Step

SECONDS = 120.0
"""How long a child may take; the host has a deadline of its own for the scenario."""

_CHUNK = 64 * 1024


def fork(context: Context, args: dict[str, Any]) -> Outcome:
    """Fork; the child runs `steps` on a copy of the state and ends. The answers are in `children`."""
    steps: list[dict[str, Any]] = args["steps"]
    source, sink = os.pipe()
    sys.stderr.flush()  # else the child would say it again
    pid = os.fork()
    if pid == 0:
        os.close(source)
        _child(context, steps, sink)
    os.close(sink)
    try:
        data, late = _collect(source, time.monotonic() + SECONDS)
    finally:
        os.close(source)
    if late:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # A line that the child did not finish is none.
    children = [json.loads(line) for line in data.split(b"\n")[:-1]]
    return Outcome(children=children, error=_failure(late, status, len(children), len(steps)))


def _child(context: Context, steps: list[dict[str, Any]], sink: int) -> NoReturn:
    status = 1
    try:
        for step in steps:
            answer = execute(context, step["kind"], step["args"])
            with os.fdopen(sink, "wb", closefd=False) as out:
                out.write(json.dumps({"kind": step["kind"], "args": step["args"], **answer}).encode() + b"\n")
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        # Without the parent's exit handlers.
        os._exit(status)


def _collect(source: int, end: float) -> tuple[bytes, bool]:
    """Return what a child sent until it closed its end, and whether time ran out before."""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    data = bytearray()
    while poll.poll(max(0.0, end - time.monotonic()) * 1000):
        chunk = os.read(source, _CHUNK)
        if not chunk:
            return bytes(data), False
        data += chunk
    return bytes(data), True


def _failure(late: bool, status: int, answers: int, steps: int) -> ChildFailed | None:
    done = f"after {answers} of {steps} steps"
    if late:
        return ChildFailed(f"the child was not done after {SECONDS:g} s and was killed, {done}")
    if status < 0:
        return ChildFailed(f"the child died of {signal.Signals(-status).name} {done}")
    if status or answers != steps:
        return ChildFailed(f"the child ended with exit status {status} {done}")
    return None


STEPS: dict[str, Step] = {"fork": fork}
