"""The one thread with the one asyncio loop that talks to QEMU.

It lives as long as the command: a child's ``PDEATHSIG`` is tied to the *thread* that started it, so QEMU must never be
started from a thread that ends earlier.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from harness.deadline import Deadline

_T = TypeVar("_T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="harness-loop", daemon=True).start()
            _loop = loop
        return _loop


def call(coroutine: Coroutine[Any, Any, _T], deadline: Deadline) -> _T:
    """Run a coroutine on the loop thread and wait for its result.

    Args:
        coroutine: what to run; it is cancelled when the deadline passes.
        deadline: how long to wait.

    Raises:
        TimeoutError: the deadline passed first.
        Exception: whatever the coroutine raised.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, _running_loop())
    try:
        return future.result(deadline.remaining)
    except (TimeoutError, concurrent.futures.TimeoutError):
        future.cancel()
        raise
