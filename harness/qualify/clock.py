"""Two clocks side by side: one that never jumps, for durations, and the one that people read."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

# Less is what a clock that is being adjusted, or a busy machine, does.
_JUMP_SECONDS: Final = 5.0


class Clock:
    """Seconds since it was made, and whether the time of day has kept up with them.

    Args:
        steady: a clock that never jumps, in seconds.
        wall: the time of day, in seconds since 1970.
    """

    def __init__(self, steady: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._steady, self._wall = steady, wall
        self._began, self._apart = steady(), wall() - steady()
        self.started = datetime.fromtimestamp(wall(), UTC)

    @property
    def seconds(self) -> float:
        """Seconds since it was made, by the clock that never jumps."""
        return round(self._steady() - self._began, 3)

    def jumped(self) -> str | None:
        """What to say of a jump of the time of day since the last call, as one line; None without one."""
        apart = self._wall() - self._steady()
        jump, self._apart = apart - self._apart, apart
        if abs(jump) < _JUMP_SECONDS:
            return None
        return (
            f"the time of day jumped by {jump:+.0f} s after {self.seconds:.0f} s (or the machine slept): "
            "durations are not touched by that, times of day in logs are"
        )
