"""Patterns that buffers are filled with and checked against.

A byte of a pattern depends on its place in the buffer only, not on where a step begins: a part of a filled buffer can
be checked, and a page that was swapped with its neighbour is found.
"""

from __future__ import annotations

import struct

# What `random` wraps; its import would cost the guest tens of milliseconds.
from _random import Random

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 64 * 1024
_WORD = 8


def _random(block: int, size: int, seed: int) -> bytes:
    """Return the first bytes of a block: a generator of its own for each, so that none before it must be made."""
    words = -(-size // 4)  # the generator gives words of 32 bits, the same ones for every length
    return Random((block << 32) | seed).getrandbits(32 * words).to_bytes(4 * words, "little")[:size]


def _counter(block: int, size: int) -> bytes:
    """Return the first bytes of a block: 64-bit words, each its own number in the buffer plus one."""
    words = -(-size // _WORD)
    first = block * (BLOCK // _WORD) + 1
    return struct.pack(f"<{words}Q", *range(first, first + words))[:size]


def chunks(pattern: str | int, seed: int, offset: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of a pattern in pieces.

    Args:
        pattern: `random`, `counter`, `zero`, or a byte's value.
        seed: Of `random`, below 2^32.
        offset: Place in the buffer where they begin.
        size: How many bytes.

    Yields:
        `(place in the buffer, bytes)`, at most `BLOCK` bytes each.

    Raises:
        ValueError: There is no such pattern.
    """
    if pattern not in ("random", "counter", "zero") and not (isinstance(pattern, int) and 0 <= pattern <= 255):
        raise ValueError(f"there is no pattern {pattern!r}")
    end = offset + size
    while offset < end:
        block, skip = divmod(offset, BLOCK)
        upto = min(BLOCK, end - block * BLOCK)
        if pattern == "random":
            data = _random(block, upto, seed)[skip:]
        elif pattern == "counter":
            data = _counter(block, upto)[skip:]
        else:
            data = bytes([0 if pattern == "zero" else int(pattern)]) * (upto - skip)
        yield offset, data
        offset += len(data)


def first_difference(left: bytes, right: bytes) -> int | None:
    """Return the index of the first byte that differs in two strings of one length, or None."""
    if left == right:
        return None
    low, high = 0, len(left)
    while high - low > 1:  # the first difference is in low..high
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
