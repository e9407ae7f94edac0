"""The worker: one JSON request a line from a socket, one JSON answer a line back.

A child of the supervisor. It loads every module, says so, and waits for its one client; here a template is frozen. The
first line that it then writes is a greeting with the nonce, Python's version and the kinds of steps. It ends when its
client goes.
"""

from __future__ import annotations

import gc
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any


def _write(fd: int, answer: dict[str, Any]) -> None:
    """Write one line; directly, so that a forked child inherits no half-written buffer."""
    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


def load() -> None:
    """Load every module of this package that a step may need, and of `usdm`; raises whatever they raise."""
    from harness.agent.registry import find, kinds_of_all

    for kind in kinds_of_all():
        find(kind)
    import usdm

    for name in sorted(os.listdir(usdm.__path__[0])):  # noqa: PTH208 - pathlib costs the guest time
        if name.endswith(".py") and name != "__init__.py":
            __import__(f"usdm.{name[:-3]}")
    import traceback

    traceback.format_exception(ValueError())
    # What is loaded stays for good: collections need not look at it, nor write to its pages, which clones share.
    gc.collect()
    gc.freeze()


def serve(client: int, nonce: str) -> None:
    """Answer requests until the client goes.

    Args:
        client: Descriptor of a connected socket.
        nonce: Repeated in the greeting.
    """
    from harness.agent.context import Context
    from harness.agent.execute import describe, execute
    from harness.agent.registry import KINDS

    version = ".".join(str(part) for part in sys.version_info[:3])
    _write(client, {"nonce": nonce, "python": version, "kinds": list(KINDS)})
    context = Context()
    with os.fdopen(client, "rb", closefd=False) as requests:
        while line := requests.readline():
            try:
                request = json.loads(line)
                kind, args = request["kind"], request["args"]
            except Exception as error:  # no request: told to the host like every defect
                answer: dict[str, Any] = {"returns": None, "error": describe(error), "values": {}, "seconds": 0.0, "children": []}
                _write(client, answer)
                continue
            _write(client, execute(context, kind, args))


def run(listener: socket.socket, loaded: int, nonce_file: str) -> int:
    """Be the worker; returns the exit status.

    Args:
        listener: A listening socket; closed when the one client has come.
        loaded: Descriptor of a pipe; one byte is written when everything is loaded.
        nonce_file: Where the nonce is when a client comes.
    """
    import faulthandler

    faulthandler.enable()  # a step that touches memory which is not there leaves its place on standard error
    load()
    os.write(loaded, b"1")
    client, _ = listener.accept()
    listener.close()
    with open(nonce_file, encoding="ascii") as file:  # noqa: PTH123
        nonce = file.read()
    try:
        serve(client.detach(), nonce)
    except (BrokenPipeError, ConnectionResetError):
        return 1  # nobody listens any more
    return 0
