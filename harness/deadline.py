"""One deadline that is handed down through every call that can wait."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time.

    Args:
        at: seconds on ``time.monotonic()``'s clock.
        budget: the seconds that were given, for messages.
    """

    at: float
    budget: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """A deadline ``seconds`` (>= 0) from now."""
        return cls(at=time.monotonic() + seconds, budget=seconds)

    def sooner(self, seconds: float) -> Deadline:
        """The earlier of this deadline and one ``seconds`` from now: a stage never outlives the whole."""
        other = Deadline.after(seconds)
        return other if other.at < self.at else self

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """True when no time is left."""
        return self.remaining == 0.0
