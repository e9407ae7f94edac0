"""The worker: one JSON request a line on standard input, one JSON answer a line on standard output.

Started by its path as `python3 -I -S worker.py NONCE`. The first line that it writes is a greeting with the nonce,
Python's version and the kinds of steps. It ends when its input ends.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _take_stdout() -> int:
    """Return the descriptor for answers, and send everything else that is printed to standard error."""
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def _write(fd: int, answer: dict[str, Any]) -> None:
    """Write one line; directly, so that a forked child inherits no half-written buffer."""
    import json

    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


def serve(nonce: str, answers: int) -> None:
    """Answer requests until the input ends.

    Args:
        nonce: Repeated in the greeting.
        answers: Descriptor for the greeting and the answers.
    """
    import json

    from harness.agent.context import Context
    from harness.agent.execute import describe, execute
    from harness.agent.registry import KINDS

    version = ".".join(str(part) for part in sys.version_info[:3])
    _write(answers, {"nonce": nonce, "python": version, "kinds": list(KINDS)})
    context = Context()
    while line := sys.stdin.buffer.readline():
        try:
            request = json.loads(line)
            kind, args = request["kind"], request["args"]
        except Exception as error:  # no request: told to the host like every defect
            _write(answers, {"returns": None, "error": describe(error), "values": {}, "seconds": 0.0, "children": []})
            continue
        _write(answers, execute(context, kind, args))


def main() -> int:
    """Run the worker; returns the exit status."""
    import faulthandler

    faulthandler.enable()  # a step that touches memory which is not there leaves its place on standard error
    answers = _take_stdout()
    # -I leaves the script's folder out, and the packages are two folders up.
    sys.path.insert(0, __file__.rsplit("/", 3)[0])
    try:
        serve(sys.argv[1], answers)
    except BrokenPipeError:
        return 1  # nobody listens any more
    return 0


if __name__ == "__main__":
    sys.exit(main())
