"""What harness itself is made of, as a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import harness


def sources_hash(counts: Callable[[Path], bool] = lambda file: True) -> str:
    """Hash over harness' Python files, by their paths and what is in them: 64 hex digits.

    Args:
        counts: whether a file has a part in it, by its path below the package.
    """
    folder = Path(harness.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder)
        if counts(inside):
            digest.update(f"{inside}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
