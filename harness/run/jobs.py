"""How many guests may run at once: by the cores and the memory that this process may use, also in a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, Literal

StartKind = Literal["boot", "clone"]
"""How a guest comes to life: booted cold, or cloned from a frozen template."""

# What one booted guest takes at its peak, QEMU included, in bytes (its 512 MB of memory are touched only in part).
BOOT_BYTES: Final = 700 << 20
# What one clone takes beside the template's pages, which all clones share; measured: docs/performance.md.
CLONE_BYTES: Final = 200 << 20
# A QEMU of the bare tier, whose machine has 64 MiB.
BARE_BYTES: Final = 80 << 20
GUEST_BYTES: Final[dict[StartKind | Literal["bare"], int]] = {
    "boot": BOOT_BYTES,
    "clone": CLONE_BYTES,
    "bare": BARE_BYTES,
}
# What QEMU takes beside its guest's memory, at most.
OVERHEAD_BYTES: Final = BOOT_BYTES - (512 << 20)
# Guests at once for each core. A guest under TCG keeps one core busy for most of its life; what a clone waits for (0.1
# s for each DMA of edu) is a larger part of its short one. Measured: docs/performance.md.
JOBS_PER_CORE: Final[dict[StartKind | Literal["bare"], float]] = {"boot": 1.0, "clone": 1.5, "bare": 1.0}

_ROOT: Final = Path("/")


def default_jobs(kind: StartKind | Literal["bare"]) -> int:
    """Guests at once where the user names no number, >= 1.

    Args:
        kind: how the guests are started: a clone takes less memory than a booted guest; ``bare``: there are none.
    """
    by_cores = int(available_cores() * JOBS_PER_CORE[kind])
    return max(1, min(by_cores, available_memory() // GUEST_BYTES[kind]))


def available_cores(root: Path = _ROOT) -> float:
    """Cores that this process may keep busy, > 0: those it may run on, or its control groups' quota where that is less.

    Args:
        root: where ``proc`` and ``sys`` are; another one for tests.
    """
    return min([float(len(os.sched_getaffinity(0))), *_quotas(root)])


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that new processes can have, >= 0: as the kernel estimates them, or what control groups leave if less.

    Args:
        root: where ``proc`` and ``sys`` are; another one for tests.
    """
    return max(0, min([_host_memory(root), *_group_memory(root)]))


def _host_memory(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * 1024
    return 0


def _quotas(root: Path) -> Iterator[float]:
    """The cores' worth of time that each control group around this process allows."""
    for folder in _groups(root, "cpu"):
        # Version 2 has both numbers in one file, or "max" and the period; version 1 has two files, and -1 for none.
        words = _text(folder / "cpu.max").split() or [
            *_text(folder / "cpu.cfs_quota_us").split(),
            *_text(folder / "cpu.cfs_period_us").split(),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[0]) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _group_memory(root: Path) -> Iterator[int]:
    """What each control group around this process has left: its limit without what cannot be taken back."""
    for folder in _groups(root, "memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            allowed = _text(folder / limit).strip()
            if allowed.isdigit():
                yield int(allowed) - max(0, _number(folder / used) - _cached(folder / "memory.stat", cache))


def _cached(path: Path, field: str) -> int:
    """Bytes of the page cache that the kernel gives up before anything else."""
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == field and value.isdigit():
            return int(value)
    return 0


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own up to the outermost that can be seen.

    Both versions may be mounted at once; a controller is in one of them, and a folder of the other lacks its files.
    """
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # Version 2 is the line without controllers.
        if not controllers or controller in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        place, _, source = line.partition(" - ")
        words, what = place.split(), source.split()
        if len(words) < 5 or len(what) < 3 or what[0] not in paths:
            continue
        if what[0] == "cgroup" and controller not in what[2].split(","):
            continue
        top = root / _unescaped(words[4]).lstrip("/")
        own, mounted = paths[what[0]], PurePosixPath(_unescaped(words[3]))
        # In a container the mount may show only a part of the tree; a path outside it says nothing about the folders.
        inside = own.relative_to(mounted) if own.is_relative_to(mounted) else PurePosixPath()
        inside = PurePosixPath() if ".." in inside.parts else inside
        yield from (top / part for part in (inside, *inside.parents))


def _unescaped(text: str) -> str:
    """A path of mountinfo, in which blanks and backslashes are octal numbers."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, character)
    return text


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    """A file of the kernel's; empty where there is none (another version, another kernel, not allowed)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
