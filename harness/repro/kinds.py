"""What a user can choose; apart, so that the command line's help loads nothing else."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """How a page comes to be without the permission that the device needs."""

    NEVER_MAPPED = "never-mapped"
    UNMAPPED = "unmapped"
    READ_ONLY = "read-only"


class Tier(StrEnum):
    """Where a fault happens."""

    AUTO = "auto"
    GUEST = "guest"
    BARE = "bare"
