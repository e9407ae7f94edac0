"""One thing that is looked at in a step."""

from __future__ import annotations

from dataclasses import dataclass

NOT_SAID = "no word on it"
"""What is observed where a step should have said something and did not."""


@dataclass(frozen=True)
class Aspect:
    """One thing that is looked at in a step.

    Args:
        good: it is as it should be.
        expected: what should be, in words.
        observed: what was.
    """

    good: bool
    expected: str
    observed: str
