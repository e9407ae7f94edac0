"""The same steps on usdm and on its oracle: what is known to differ, and what must not.

Addresses differ from run to run and between implementations; what is compared is what a program relies on: that there
is one, its alignment and range, what it translates to, what a device reads and writes there, and the faults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.fault import evidence_faults, reason_name
from harness.judge.faults import other_faults
from harness.judge.mappings import PAGE, mapping
from harness.judge.steps import deviation
from harness.judge.words import listed, value
from harness.oracle_traits import TRAITS, Traits
from harness.results import Check, Evidence, StepEvidence
from harness.scenario.model import Scenario
from harness.scenario.steps import Nested, Step

# Observations of a step that are the same whatever the addresses are, by kind.
_SAME = {
    "check": ("equal", "first_difference"),
    "compare": ("equal", "first_difference"),
    "translate": ("present", "absent", "contiguous"),
    "translate_back": ("same",),
    # Their status, which a qat tells, follows from the faults, and those are compared.
    "dma_read": ("completed",),
    "dma_write": ("completed",),
    "operate": ("status", "equal", "first_difference", "refused_at", "reason", "unasked"),
    "collect": ("statuses", "unasked"),
    "container_unmap": ("size",),
    "container_info": ("counts", "iova_ranges"),
    "open": ("address", "iova_ranges"),
    "free": ("pointer",),
    "free_plain": ("pointer",),
    "map_each": ("done",),
    "unmap_each": ("done",),
    "threads": ("counts",),
    "hugepages": ("counts",),
    "nodes": ("nodes", "absent"),
    "iova_alloc": ("inside",),
    "iova_link_each": ("done",),
    "stream_map": ("inside",),
}
# What only the one that goes through VFIO has been told.
_OF_A_CONTAINER = ("iova_ranges",)
# Of these it counts whether they succeeded: an errno is each implementation's own, and an IOVA is one's own.
_SIGNS = frozenset({"iova_alloc", "iova_link", "iova_link_each", "iova_sync", "stream_map"})
_ADDRESSES = ("alloc", "alloc_plain", "map", "map_each")
_ALL = 1 << 64


def compare_implementations(scenario: Scenario, ours: Evidence, theirs: Evidence) -> Iterator[Check]:
    """One check for each step and one for the faults: the two did the same, or differ in a way that is known.

    Args:
        scenario: the scenario that ran.
        ours: what `usdm` left.
        theirs: what the oracle left.
    """
    other, traits = oracle_name(theirs), None if theirs.oracle is None else TRAITS[theirs.oracle.name]
    left, right = _by_path(ours.steps), _by_path(theirs.steps)
    for path, index, step in _walk(scenario.steps, ""):
        known = deviation(step, theirs.oracle)
        if path in left and path in right:
            differ = _differences(_facets(step, left[path], ours, traits), _facets(step, right[path], theirs, traits))
        else:
            differ = [] if path not in left and path not in right else ["only one of the two ran it"]
        yield _check(f"both do step {path} ({step.kind})", differ, known.id if known else None, index, other)
    known_faults = other_faults(scenario, theirs)
    left_faults, right_faults = _faults(ours), _faults(theirs)
    differ = [f"usdm only: {one}" for one in left_faults if one not in right_faults]
    differ += [f"{other} only: {one}" for one in right_faults if one not in left_faults]
    yield _check("both meet the same faults", differ, known_faults.id if known_faults else None, None, other)


def oracle_name(evidence: Evidence) -> str:
    """What an evidence's steps ran on, by its name."""
    return "usdm" if evidence.oracle is None else evidence.oracle.name


def _differences(left: Mapping[str, object], right: Mapping[str, object]) -> list[str]:
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    return [f"{name}: {value(left.get(name))} and {value(right.get(name))}" for name in names]


def _check(name: str, differ: list[str], known: str | None, step: int | None, other: str) -> Check:
    message = "the same" if not differ else listed(differ)
    if differ:
        message = f"known as {known}: {message}" if known else f"expected the same, observed {message}"
    return Check(
        name=name,
        passed=not differ or known is not None,
        message=message,
        expected=f"usdm and {other} do the same" + (f", or differ as {known}" if known else ""),
        observed=listed(differ) or "the same",
        step=step,
    )


def _walk(steps: Sequence[Step], prefix: str) -> Iterator[tuple[str, int, Step]]:
    """Every step with its path (``3``, in a fork ``3.0``) and the index of the outermost step."""
    for index, step in enumerate(steps):
        yield f"{prefix}{index}", int(prefix.partition(".")[0] or index), step
        if isinstance(step.args, Nested):
            yield from _walk(step.args.steps, f"{prefix}{index}.")


def _by_path(steps: Sequence[StepEvidence], prefix: str = "") -> dict[str, StepEvidence]:
    found = {}
    for position, seen in enumerate(steps):
        path = f"{prefix}{position if prefix else seen.index}"
        found[path] = seen
        found |= _by_path(seen.children, f"{path}.")
    return found


def _facets(step: Step, seen: StepEvidence, evidence: Evidence, traits: Traits | None) -> dict[str, object]:
    """What a program relies on of a step, by name.

    Args:
        step: the step.
        seen: what it did.
        evidence: all that ran with it.
        traits: of what usdm is compared with.
    """
    facets: dict[str, object] = {"failed": seen.error is not None}
    if seen.kind in _ADDRESSES:
        facets["address"] = "none" if not seen.returns else "given"
    elif seen.kind in _SIGNS:
        facets["returned"] = _outcome(seen)
    else:
        facets["returned"] = seen.returns
    if seen.error is None:
        told = traits is None or traits.containers
        same = [name for name in _SAME.get(seen.kind, ()) if told or name not in _OF_A_CONTAINER]
        facets |= {name: seen.values.get(name) for name in same}
    if seen.kind == "mappings" and seen.error is None:
        found = mapping(seen)
        # That an IOVA happens to be the physical address is no difference.
        facets["mapped"] = None if found is None else found.kind.replace("one_to_one", "whole")
    if seen.kind == "iova_info" and seen.error is None:
        counts = seen.values.get("counts", {})
        kept = counts if traits is None else traits.counts.get(seen.kind, counts)
        facets |= {name: counts.get(name) for name in kept}
    iova = seen.values.get("iova")
    if isinstance(iova, int) and seen.kind in ("alloc", "map"):
        size = getattr(step.args, "size", 1)
        facets["in the container's ranges"] = _inside(iova, size, _ranges(evidence))
    return facets


def _outcome(seen: StepEvidence) -> str:
    """What a return value of two-step or streaming mapping comes to."""
    if seen.error is not None or seen.returns is None:
        return "failure"
    if seen.kind in ("iova_alloc", "stream_map"):
        return "yes" if seen.returns else "no"
    return "zero" if seen.returns == 0 else "negative" if seen.returns < 0 else "positive"


def _ranges(evidence: Evidence) -> list[list[int]]:
    """The usable IOVAs as a step was told them; everything when none was."""
    for seen in evidence.steps:
        ranges = seen.values.get("iova_ranges")
        if isinstance(ranges, list):
            return ranges
    return [[0, _ALL - 1]]


def _inside(iova: int, size: int, ranges: Sequence[Sequence[int]]) -> bool:
    return any(first <= iova and iova + size - 1 <= last for first, last in ranges)


def _faults(evidence: Evidence) -> list[str]:
    """The trace's faults in words without addresses that differ between runs: by the buffer that the step named."""
    steps = {seen.index: seen for seen in evidence.steps}
    words = []
    for fault in evidence_faults(evidence):
        reason = "" if fault.reason is None else f", reason 0x{fault.reason:02x} ({reason_name(fault.reason)})"
        seen = None if fault.step is None else steps.get(fault.step)
        place = _place(fault.address, (seen, *seen.children) if seen else ())
        words.append(f"step {fault.step}: {fault.requester} {fault.access} {place}{reason}")
    return sorted(words)


def _place(address: int | None, steps: Sequence[StepEvidence]) -> str:
    """Where an address lies in what the DMA that went there was told; the address itself where it was told that."""
    if address is None:
        return "address not said"
    for seen in steps:
        for iova, place in _reached(seen):
            # A range is known by its name too: each run reserves it elsewhere.
            size, named = place.get("size"), place.get("range") or place.get("buffer")
            if (
                isinstance(iova, int)
                and isinstance(size, int)
                and named
                and iova // PAGE * PAGE <= address < iova + size
            ):
                offset = int(place.get("offset", 0)) + address - iova
                return f"{named}, page at {offset // PAGE * PAGE:#x}"
    return f"{address:#x}"


def _reached(seen: StepEvidence) -> Iterator[tuple[object, Mapping[str, Any]]]:
    """The IOVAs that a step was given, each with the part of its arguments that named it."""
    yield seen.values.get("iova"), seen.args
    for side in ("source", "destination"):
        pieces, places = seen.args.get(side), seen.values.get(side)
        if isinstance(pieces, list | tuple) and isinstance(places, list):
            yield from zip(places, pieces, strict=False)
