"""Physical memory for tests: which frame each page has, and a /proc/self/pagemap and /proc/self/maps that say so."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

from usdm import frames as under_test

PAGE = 4096
MIB = 1 << 20
PRESENT, SOFT_DIRTY, EXCLUSIVE = 1 << 63, 1 << 55, 1 << 56
FIRST = 0x100000  # frame numbers that are given without being asked for begin here


class FakeFrames:
    """Frames of pages, by virtual page number. `spans` are what /proc/self/maps lists: start, end, permissions."""

    def __init__(self) -> None:
        self.frames: dict[int, int] = {}
        self.spans: list[tuple[int, int, str]] = []
        self.hidden = False
        self.reads = 0
        self.before: Callable[[int], None] = lambda reads: None  # called before each look, with its number
        self._next = FIRST
        probe = ctypes.addressof(under_test._written)
        self.frames[probe // PAGE] = 1

    def give(self, virt: int, frames: list[int], permissions: str = "rw-p") -> int:
        """Pages at `virt` have these frames (0: none is there). Returns the first one's physical address."""
        for index, frame in enumerate(frames):
            self.frames[virt // PAGE + index] = frame
        self.spans.append((virt, virt + len(frames) * PAGE, permissions))
        return frames[0] * PAGE

    def fresh(self, virt: int, size: int, step: int = PAGE) -> None:
        """Pages at `virt` have frames that nobody has; those of a step are contiguous."""
        for start in range(virt, virt + size, step):
            self._next = -(-self._next // (step // PAGE)) * (step // PAGE)
            self.give(start, list(range(self._next, self._next + step // PAGE)))
            self._next += step // PAGE

    def take(self, virt: int, size: int) -> None:
        """Nothing is there any more."""
        for page in range(virt // PAGE, (virt + size) // PAGE):
            self.frames.pop(page, None)
        left = []
        for start, end, permissions in self.spans:
            left += [(a, b, permissions) for a, b in ((start, min(end, virt)), (max(start, virt + size), end)) if a < b]
        self.spans = left

    def move(self, old: int, size: int, new: int) -> None:
        """What was at `old` is at `new`."""
        frames = [self.frames.get(old // PAGE + index, 0) for index in range(size // PAGE)]
        self.take(new, size)
        self.take(old, size)
        self.give(new, frames)

    def pagemap(self, address: int, count: int) -> bytes:
        self.before(self.reads)
        self.reads += 1
        entries = []
        for page in range(address // PAGE, address // PAGE + count):
            frame = self.frames.get(page, 0)
            flags = PRESENT | (SOFT_DIRTY if page % 2 else EXCLUSIVE)
            entries.append((flags | (0 if self.hidden else frame)) if frame else page % 3 * 5)
        return struct.pack(f"={count}Q", *entries)

    def maps(self) -> bytes:
        lines = [f"{a:08x}-{b:08x} {how} 00000000 00:00 0 /tmp/\xe9" for a, b, how in sorted(self.spans)]
        return "\n".join([*lines, ""]).encode("latin-1")
