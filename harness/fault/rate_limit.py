"""What the kernel printed of late, by which its rate limits can be told."""

from __future__ import annotations

from collections import deque
from typing import Final

INTERVAL: Final = 5.0
"""Seconds in which Linux prints so many messages of one kind, and no more (its default for rate limits)."""


class Bucket:
    """The messages that the kernel printed in the last interval; without times, all of them.

    Args:
        size: how many it prints in one interval.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: deque[tuple[float | None, int]] = deque()
        self._messages = 0

    def take(self, time: float | None, messages: int) -> None:
        """Count messages that were printed at a time in seconds; times must not go back."""
        self._taken.append((time, messages))
        self._messages += messages

    def empty(self, now: float | None) -> bool:
        """Whether the share of the interval before ``now`` is used up."""
        while now is not None and self._taken:
            time, messages = self._taken[0]
            if time is None or now - time <= INTERVAL:
                break
            self._taken.popleft()
            self._messages -= messages
        return self._messages >= self._size
