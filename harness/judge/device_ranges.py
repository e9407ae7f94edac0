"""What a device can reach against what it should: ranges compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Literal

from harness.agent.ranges import coalesce
from harness.results import Belief, Run

Range = tuple[int, int, str]
"""First IOVA, end (the first IOVA behind it), and ``r``, ``w`` or ``rw``."""

Kind = Literal["leak", "too long", "missing", "too short", "wrong permission"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A range in which the device can reach something else than it should.

    Args:
        kind: what is wrong.
        first: first IOVA.
        end: first IOVA behind it.
        believed: the access that the program believes in; empty for none.
        seen: the access that the device has; empty for none.
    """

    kind: Kind
    first: int
    end: int
    believed: str
    seen: str


def expand(runs: Iterable[Run]) -> list[Range]:
    """Runs as ranges, ascending; those that follow each other with the same access as one."""
    ranges = (
        (first + index * stride, size, access) for first, size, access, count, stride in runs for index in range(count)
    )
    return [(first, first + size, access) for first, size, access in coalesce(ranges)]


def as_seen(access: str) -> str:
    """An access as QEMU tells devices of it: a vfio-user mapping can always be read, also one for writing only."""
    return "rw" if "w" in access else access


def differences(belief: Belief, ranges: Iterable[Run]) -> list[Difference]:
    """Where the device can reach something else than the program believes, ascending.

    Args:
        belief: what the program believes; something is known of it.
        ranges: what the device can reach.
    """
    believed = expand((first, size, as_seen(access), n, stride) for first, size, access, n, stride in belief.runs)
    seen = expand(ranges)
    found = list(_classified(believed, seen))
    if belief.exact:
        return found
    lost = [one for one in found if one.believed]
    gone = expand((first, size, "rw", n, stride) for first, size, _, n, stride in belief.gone)
    extra = [(one.first, one.end, one.seen) for one in found if not one.believed]
    kept = [Difference("leak", first, end, "", b) for first, end, a, b in _pieces(gone, extra) if a and b]
    return sorted([*lost, *kept], key=lambda one: one.first)


def _classified(believed: Sequence[Range], seen: Sequence[Range]) -> Iterable[Difference]:
    before: tuple[int, str, str] = (-1, "", "")  # end and accesses of the piece before
    for first, end, wanted, has in _pieces(believed, seen):
        if wanted != has:
            follows = before[0] == first
            kind: Kind
            if not wanted:
                kind = "too long" if follows and before[1] and before[2] == has else "leak"
            elif not has:
                kind = "too short" if follows and before[1] == wanted and before[2] else "missing"
            else:
                kind = "wrong permission"
            yield Difference(kind, first, end, wanted, has)
        before = end, wanted, has


def _pieces(left: Sequence[Range], right: Sequence[Range]) -> Iterable[tuple[int, int, str, str]]:
    """Every piece that is in one of two lists of ranges, with its access in both; neighbours of one kind as one.

    The ranges of each list are ascending and do not overlap.
    """
    events = merge(_events(left, 0), _events(right, 1))
    state = ["", ""]
    at = 0
    last: tuple[int, int, str, str] | None = None
    for place, _, side, access in events:
        if place > at and (state[0] or state[1]):
            piece = at, place, state[0], state[1]
            if last is not None and last[1] == at and last[2:] == piece[2:]:
                piece = last[0], place, state[0], state[1]
            elif last is not None:
                yield last
            last = piece
        at = place
        state[side] = access
    if last is not None:
        yield last


def _events(ranges: Sequence[Range], side: int) -> Iterable[tuple[int, int, int, str]]:
    """Where ranges end and begin: place, 0 for an end, side, access from there on."""
    for first, end, access in ranges:
        yield first, 1, side, access
        yield end, 0, side, ""


def outside(found: Sequence[Difference], known: Sequence[Difference]) -> list[Difference]:
    """The parts of differences that are not in others that were there before, with the same accesses."""
    fresh: list[Difference] = []
    for one in found:
        at = one.first
        for other in known:
            if (other.believed, other.seen) != (one.believed, one.seen) or other.end <= at or other.first >= one.end:
                continue
            if other.first > at:
                fresh.append(Difference(one.kind, at, other.first, one.believed, one.seen))
            at = max(at, other.end)
        if at < one.end:
            fresh.append(Difference(one.kind, at, one.end, one.believed, one.seen))
    return fresh
