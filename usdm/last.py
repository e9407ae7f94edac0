"""The error behind the last C call of each thread."""

from __future__ import annotations

import sys
from _thread import _local, get_ident  # what threading wraps, without its imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from usdm.errors import UsdmError

    Result = TypeVar("Result")

thread = _local()
failed: set[int] = set()
"""Threads that may have an error: while there is none, a success has nothing to forget."""


def last_error() -> UsdmError | None:
    """Return the error behind the last call of this thread, or None when it succeeded."""
    error: UsdmError | None = getattr(thread, "error", None)
    return error


def failure(error: UsdmError, value: Result) -> Result:
    """Keep an error, and return the C failure value."""
    # Without its traceback, which would keep the caller's objects alive.
    thread.error = error.with_traceback(None)
    failed.add(get_ident())
    return value


def told(function: str, error: UsdmError, value: Result) -> Result:
    """Keep an error, say on standard error which function met it and why, and return the C failure value."""
    lines = (f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()))
    if sys.stderr is not None:
        try:
            for line in lines:
                sys.stderr.write(f"{function}: {line}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody listens any more; `last_error` has it all the same
    return failure(error, value)


def success() -> None:
    """Forget the last error of this thread."""
    thread.error = None
    failed.discard(get_ident())
