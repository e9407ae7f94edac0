"""The word to stop, for waits that do not end by themselves when the guests are ended.

A wait on a guest ends because its QEMU is killed. A wait on anything else (another process's lock) must look here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_event: ContextVar[threading.Event | None] = ContextVar("stopping", default=None)


@contextmanager
def stopped_by(event: threading.Event) -> Iterator[None]:
    """Have :func:`check` look at an event while the block lasts, in this thread."""
    token = _event.set(event)
    try:
        yield
    finally:
        _event.reset(token)


def current() -> threading.Event | None:
    """The event that :func:`check` looks at in this thread, or None."""
    return _event.get()


def check() -> None:
    """Go on, unless this thread was told to stop.

    Raises:
        KeyboardInterrupt: it was. Like the one of a Ctrl-C in the main thread it is no error of anything, so only those
            who clean up catch it.
    """
    event = _event.get()
    if event is not None and event.is_set():
        raise KeyboardInterrupt
