"""A recording of the kernel's dma_iova_* calls against the same calls on usdm.dma_iova.

Compared are the results, the address's place in its granule, the sizes, what is mapped, and by how many calls. The two
differ by design in one thing: the kernel maps in dma_iova_link, ``usdm`` in dma_iova_sync (docs/dma-iova.md). So the
mappings of a range are compared as they are after dma_iova_sync.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.judge.words import listed
from harness.results import Check, Evidence, StepEvidence

_RESULT = ("dma_iova_try_alloc", "dma_iova_link", "dma_iova_sync")


def check_replays(evidence: Evidence) -> list[Check]:
    """A check of every replay that was done.

    Args:
        evidence: what ran; a replay is compared with the recording of its name.
    """
    recordings = {
        str(one.args.get("name")): one for one in evidence.steps if one.kind == "trace_end" and one.error is None
    }
    checks = []
    for seen in evidence.steps:
        if seen.kind == "replay" and seen.error is None:
            checks.append(_check(seen, recordings.get(str(seen.args.get("trace")))))
    return checks


def _check(seen: StepEvidence, recording: StepEvidence | None) -> Check:
    name = f"replay of {seen.args.get('trace')}"
    expected = "the kernel's results of every call"
    try:
        if recording is None:
            raise KeyError("recording")
        calls = [call for call in recording.values["calls"] if "state" in call]
        found = list(compare(calls, seen.values["calls"], recording.values["granule"]))
        counts = seen.values["counts"]
        observed = f"{len(calls)} calls, {counts['ranges']} ranges, {counts['links']} links: the same on both"
        good = bool(calls) and not found
    except (KeyError, TypeError, ValueError, IndexError) as error:
        found, observed, good = [], f"nothing that can be compared ({type(error).__name__}: {error})", False
    if not good:
        observed = listed(found) if found else observed
    message = observed if good else f"expected {expected}, observed {observed}"
    return Check(name=name, passed=good, message=message, expected=expected, observed=observed, step=seen.index)


def compare(kernel: Sequence[dict[str, Any]], usdm: Sequence[dict[str, Any]], granule: int) -> Iterator[str]:
    """What is different, each in words.

    Args:
        kernel: calls with a state, as ``harness.agent.iova_trace`` gives them.
        usdm: the same calls, as the step ``replay`` does them.
        granule: bytes of the IOMMU's smallest page.
    """
    if [_call(one) for one in kernel] != [_call(one) for one in usdm]:
        yield f"{len(kernel)} calls of the kernel, {len(usdm)} that are not the same of usdm"
        return
    pending: dict[int, list[list[int]]] = {}  # what the kernel has mapped of a range, and usdm has not yet
    base: dict[int, tuple[int, int]] = {}  # the first IOVA of a range, on both
    for index, (one, other) in enumerate(zip(kernel, usdm, strict=True)):
        where, state = f"call {index} ({one['call']})", one["state"]
        if one["call"] in _RESULT and one["result"] != other["result"]:
            why = f" ({other['refused']})" if other["refused"] else ""
            yield f"{where}: the kernel says {one['result']}, usdm {other['result']}{why}"
        if one["call"] not in _RESULT and other["refused"]:
            yield f"{where}: usdm refuses it with {other['refused']}"
        if one["call"] == "dma_iova_try_alloc":
            base[state], pending[state] = _first(one, granule, other), []
            yield from _range(where, one, other, granule)
        if one["call"] == "dma_iova_link":
            pending.setdefault(state, []).extend(one["maps"])
        yield from _mappings(where, one, other, base.get(state, (0, 0)), pending.get(state, []))
        if one["call"] == "dma_iova_sync":
            pending[state] = []


def _call(one: dict[str, Any]) -> tuple[str, int]:
    return one["call"], one["state"]


def _first(one: dict[str, Any], granule: int, other: dict[str, Any]) -> tuple[int, int]:
    return one["addr"] - one["addr"] % granule, other["addr"] - other["addr"] % granule


def _range(where: str, one: dict[str, Any], other: dict[str, Any], granule: int) -> Iterator[str]:
    if not one["result"]:
        return
    if one["addr"] % granule != other["addr"] % granule:
        yield f"{where}: the kernel's range begins at {one['addr']:#x}, usdm's at {other['addr']:#x}"
    if one["range"] != other["range"]:
        yield f"{where}: the kernel's range has {one['range']:#x} bytes, usdm's {other['range']:#x}"


def _mappings(
    where: str, one: dict[str, Any], other: dict[str, Any], base: tuple[int, int], pending: list[list[int]]
) -> Iterator[str]:
    """What was mapped and unmapped by a call, relative to the range."""
    maps = pending if one["call"] == "dma_iova_sync" else []
    if other["map_calls"] != len(maps):
        yield f"{where}: the kernel made {len(maps)} mappings, usdm {other['map_calls']}"
    ours, theirs = _joined(other["maps"], base[1]), _joined(maps, base[0])
    if ours != theirs:
        yield f"{where}: the kernel mapped {_words(theirs)} of the range, usdm {_words(ours)}"
    if other["unmap_calls"] != len(one["unmaps"]):
        yield f"{where}: the kernel unmapped by {len(one['unmaps'])} calls, usdm by {other['unmap_calls']}"
    ours, theirs = _joined(other["unmaps"], base[1]), _joined(one["unmaps"], base[0])
    if ours != theirs:
        yield f"{where}: the kernel unmapped {_words(theirs)} of the range, usdm {_words(ours)}"


def _joined(rows: Sequence[Sequence[int]], base: int) -> list[tuple[int, int]]:
    """Pieces of a range as (offset, end), those that touch as one: one mapping may be several events.

    Args:
        rows: the IOVA first, the bytes last.
        base: the range's first IOVA.
    """
    pieces: list[tuple[int, int]] = []
    for iova, size in sorted((row[0] - base, row[-1]) for row in rows):
        if pieces and pieces[-1][1] == iova:
            pieces[-1] = pieces[-1][0], iova + size
        else:
            pieces.append((iova, iova + size))
    return pieces


def _words(pieces: Sequence[tuple[int, int]]) -> str:
    return listed([f"{first:#x} to {end:#x}" for first, end in pieces]) or "nothing"
