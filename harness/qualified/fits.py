"""Whether an entry of a matrix, or of its known failures, means a scenario on a point."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping


def fits_pattern(patterns: Collection[str], scenario: str) -> bool:
    """Whether one of some ids, folders and patterns (as a shell has them) means a scenario."""
    return any(
        scenario == one or scenario.startswith(f"{one.rstrip('/')}/") or fnmatch.fnmatchcase(scenario, one)
        for one in patterns
    )


def fits_point(when: Mapping[str, Collection[str]], point: Mapping[str, str]) -> bool:
    """Whether a point has, on each axis of ``when``, one of the values."""
    return all(point.get(axis) in values for axis, values in when.items())
