"""How the judge writes values, so that every check says the same thing in the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_LISTED = 5
_LONG = 200


def value(anything: Any) -> str:
    """A value that a step observed, as JSON; a large integer with its hexadecimal form, because it is an address."""
    if anything is None:
        return "null"
    try:
        if isinstance(anything, int) and not isinstance(anything, bool) and abs(anything) >= 4096:
            return f"{anything} ({anything:#x})"
        text = json.dumps(anything, default=str)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(anything))
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def listed(items: Sequence[str]) -> str:
    """Items in one line, the first few of many."""
    more = len(items) - _LISTED
    return "; ".join(items[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
