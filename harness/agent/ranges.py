"""Ranges of addresses put together, and written short: thousands of mappings must fit into a line.

A run is `[first, bytes, access, count, stride]`: `count` ranges of `bytes` each, one every `stride` bytes. One range
alone has the stride 0.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Range = tuple[int, int, str]  # first address, bytes, `r`, `w` or `rw`
    Run = tuple[int, int, str, int, int]


def coalesce(ranges: Iterable[Range]) -> list[Range]:
    """Return the same addresses by as few ranges as possible, ascending.

    Ranges that follow each other with the same access become one. Of two that overlap with different access the one
    that begins first has the common part.
    """
    found: list[Range] = []
    start = end = 0
    access = ""
    for first, size, allowed in sorted(ranges):
        stop = first + size
        if access and first <= end and allowed == access:
            end = max(end, stop)
            continue
        if access:
            found.append((start, end - start, access))
            first = max(first, end)
        if first < stop:
            start, end, access = first, stop, allowed
        elif access:
            start, end, access = found.pop()[0], end, access
    if access:
        found.append((start, end - start, access))
    return found


def pack(ranges: Iterable[Range]) -> list[Run]:
    """Return ranges, coalesced, as runs."""
    runs: list[Run] = []
    for iova, size, access in coalesce(ranges):
        if runs:
            first, length, allowed, count, stride = runs[-1]
            step = iova - first - (count - 1) * stride
            if length == size and allowed == access and (count == 1 or step == stride):
                runs[-1] = (first, length, allowed, count + 1, step)
                continue
        runs.append((iova, size, access, 1, 0))
    return runs
