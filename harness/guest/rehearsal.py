"""What a guest, and a virtual machine inside it, do before anybody's steps: the first time is slow under TCG."""

from __future__ import annotations

_BUFFER: dict[str, object] = {"buffer": "a", "offset": 0, "size": 4096, "pattern": "counter", "seed": 0}

REHEARSAL: tuple[tuple[str, dict[str, object]], ...] = (
    ("_begin", {"devices": {}, "replaced": []}),
    ("buffer", {"as": "a", "size": 4096, "backing": "anonymous"}),
    ("fill", _BUFFER),
    ("check", _BUFFER),
    ("release", {"buffer": "a"}),
    ("_end", {}),
)
"""Requests to the worker, kind and arguments, that leave nothing."""

VM_START: tuple[str, dict[str, object]] = (
    "_vm_start",
    {"megabytes": 256, "rehearsal": [{"kind": kind, "args": args} for kind, args in REHEARSAL]},
)
"""The request that starts the virtual machine inside, which does the same then."""

VM_SECONDS = 900.0
"""How long that may take: it is emulated by what is emulated itself: 69 s of CPU time (docs/performance.md)."""
