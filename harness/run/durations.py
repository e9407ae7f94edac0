"""How long cells took the last time, so that the longest can be started first.

Only a hint: a store that is missing, damaged or cannot be written costs nothing but the order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import filelock

from harness.paths import state_dir
from harness.report.text import write_text
from harness.run.jobs import StartKind

MAX_ENTRIES: Final = 4000
_FORMAT: Final = 1
# A merge takes milliseconds; a store that is locked for longer is not worth waiting for.
_LOCK_SECONDS: Final = 1.0


def key(scenario: str, kind: StartKind) -> str:
    """The name of a duration: the same scenario takes longer when its guest is booted."""
    return f"{kind} {scenario}"


class Durations:
    """Seconds by :func:`key` in one JSON file, the newest last.

    Several processes may use one file at once: what they write is merged.

    Args:
        file: the file; without it the one in the user's state folder.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or state_dir() / "durations.json"

    def load(self) -> dict[str, float]:
        """All that is known, in seconds >= 0; what is damaged counts as unknown."""
        try:
            document = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        entries = document.get("seconds") if isinstance(document, dict) and document.get("format") == _FORMAT else None
        if not isinstance(entries, dict):
            return {}
        return {name: float(seconds) for name, seconds in entries.items() if _is_duration(seconds)}

    def merge(self, new: Mapping[str, float]) -> None:
        """Add or replace durations; the oldest beyond :data:`MAX_ENTRIES` are forgotten.

        Args:
            new: seconds, finite and >= 0, by :func:`key`.
        """
        if not new:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(self.file.with_name(f"{self.file.name}.lock"), timeout=_LOCK_SECONDS):
                kept = {name: seconds for name, seconds in self.load().items() if name not in new}
                newest = list({**kept, **new}.items())[-MAX_ENTRIES:]
                text = json.dumps({"format": _FORMAT, "seconds": dict(newest)}, indent=0, allow_nan=False)
                write_text(self.file, text + "\n")
        except (OSError, NotImplementedError):  # full, read-only, or a file system without locks
            return


def _is_duration(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and value >= 0
    except OverflowError:  # an integer beyond every float
        return False
