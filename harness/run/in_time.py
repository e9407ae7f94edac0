"""What the host itself does for a step, within the scenario's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import InfrastructureError


@contextmanager
def in_time(doing: str) -> Iterator[None]:
    """Say what took too long.

    Args:
        doing: what is done, e.g. ``step 3 (resume)``.

    Raises:
        InfrastructureError: it met the deadline; otherwise whatever it raised.
    """
    try:
        yield
    except TimeoutError as error:
        raise InfrastructureError(
            f"{doing} was not done before the scenario's deadline", hint="--timeout gives it more time"
        ) from error
