"""The worker: one JSON request a line from a socket, one JSON answer a line back.

A child of the supervisor. It loads every module, says so, and waits for a client; here a template is frozen. The first
line that it then writes is a greeting with the nonce, Python's version and the kinds of steps.
"""

from __future__ import annotations

import gc
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any, NoReturn


def _write(fd: int, answer: dict[str, Any]) -> None:
    """Write one line; directly, so that a forked child inherits no half-written buffer."""
    data = memoryview(json.dumps(answer).encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


def load() -> None:
    """Load every module of this package and of `usdm`, and use what the standard library loads when it is first used.

    Raises:
        Exception: Whatever a module raises; code under test may be broken.
    """
    import traceback

    import harness.agent
    import usdm

    for package in (harness.agent, usdm):
        for name in sorted(os.listdir(package.__path__[0])):  # noqa: PTH208 - pathlib costs the guest time
            if name.endswith(".py") and name not in ("__init__.py", "supervisor.py"):
                __import__(f"{package.__name__}.{name[:-3]}")
    traceback.format_exception(ValueError())


def _no_request(error: dict[str, str]) -> dict[str, Any]:
    return {"returns": None, "error": error, "values": {}, "seconds": 0.0, "children": []}


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
                _write(client, _no_request(describe(error)))
                continue
            _write(client, execute(context, kind, args))


def run(
    listener: socket.socket, loaded: int, nonce_file: str, when_loaded: Callable[[], None] = lambda: None
) -> NoReturn:
    """Be the worker, for one client after the other; each begins with a new context.

    Args:
        listener: A listening socket.
        loaded: Descriptor of a pipe; one byte is written when everything is loaded.
        nonce_file: Where the nonce is when a client comes.
        when_loaded: Called once, when everything is loaded.
    """
    import faulthandler

    faulthandler.enable()  # a step that touches memory which is not there leaves its place on standard error
    sys.stdout = sys.stderr  # what code under test prints is not held back in a buffer
    load()
    when_loaded()
    os.write(loaded, b"1")
    while True:
        # What is there now stays for good: collections need not look at it, nor write to its pages, which clones share.
        gc.collect()
        gc.freeze()
        client, _ = listener.accept()
        fd = os.open(nonce_file, os.O_RDONLY)
        nonce = os.read(fd, 64).decode()
        os.close(fd)
        with client:
            try:
                serve(client.fileno(), nonce)
            except (BrokenPipeError, ConnectionResetError):
                continue
