"""What a function says on standard error. It goes on where nobody can take that, as on a full disk."""

from __future__ import annotations

import contextlib
import sys


def tell(text: str) -> None:
    """Print lines, or nothing."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
