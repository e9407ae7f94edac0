"""The IOVAs that the evidence of a run knows, and what became of them: is a fault's address inside a mapping?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.results import CellResult, Evidence, StepEvidence

_MAPPING: Final = {
    "alloc": "as",
    "map": "buffer",
    "container_map": "buffer",
    "remap": "buffer",
    "iova_alloc": "as",
    "stream_map": "buffer",
}
_ENDING: Final = frozenset(
    {"unmap", "free", "container_unmap", "unremap", "unregister", "mem_destroy"}
    | {"iova_free", "iova_destroy", "stream_unmap"}
)
_BY_ADDRESS: Final = {
    "container_unmap": ("container_map", "remap"),
    "unremap": ("container_map", "remap"),
    "stream_unmap": ("stream_map",),
}
_DIRECTIONS: Final = {"to_device": "read", "from_device": "write"}
_RANGE: Final = frozenset({"iova_free", "iova_destroy"})


@dataclass
class KnownRange:
    """IOVAs that a step of a run mapped.

    Args:
        scenario: id of the scenario.
        buffer: the buffer's name, or empty.
        start: the first IOVA.
        size: bytes.
        kind: the kind of the step: ``alloc``, ``map``, ``container_map``, ``remap``, ``iova_alloc``, ``stream_map``.
        since: index of the step that mapped it.
        until: index of the step that ended it, or None.
        access: what the device may do, where the step says so.
    """

    scenario: str
    buffer: str
    start: int
    size: int
    kind: str
    since: int
    until: int | None = None
    access: str = "read_write"

    def describe(self, address: int) -> str:
        """Where the address lies in it, in words."""
        ended = f", ended by step {self.until}" if self.until is not None else ", never ended"
        rights = "" if self.access == "read_write" else f" for {self.access} only"
        name = self.buffer or f"{self.start:#x}"
        place = f"{name}+{address - self.start:#x} of {self.scenario}"
        did = "reserved" if self.kind == "iova_alloc" else "mapped"
        return f"inside {place}: {did}{rights} by step {self.since} ({self.kind}){ended}"


def known_ranges(cells: Iterable[CellResult]) -> list[KnownRange]:
    """All ranges that the cells of a run mapped, in order."""
    found: list[KnownRange] = []
    for cell in cells:
        for evidence in (cell.evidence, cell.reference):
            if evidence is not None:
                found += _ranges(cell.scenario, evidence)
    return found


def _ranges(scenario: str, evidence: Evidence) -> list[KnownRange]:
    found: list[KnownRange] = []
    for step in evidence.steps:
        if step.error is not None:
            continue
        if step.kind in _MAPPING:
            made = _made(scenario, step)
            found += [] if made is None else [made]
        elif step.kind in _ENDING:
            for known in found:
                if known.until is None and _ends(step, known):
                    known.until = step.index
    return found


def _made(scenario: str, step: StepEvidence) -> KnownRange | None:
    iova, size = step.values.get("iova"), step.args.get("size")
    # USDM says 0 for a mapping that failed.
    if not isinstance(iova, int) or not isinstance(size, int) or (iova == 0 and step.kind in ("alloc", "map")):
        return None
    access = step.args.get("access") or _DIRECTIONS.get(str(step.args.get("direction")))
    name = step.args.get(_MAPPING[step.kind])
    return KnownRange(
        scenario=scenario,
        buffer=name if isinstance(name, str) else "",
        start=iova,
        size=size,
        kind=step.kind,
        since=step.index,
        access=access if isinstance(access, str) else "read_write",
    )


def _ends(step: StepEvidence, known: KnownRange) -> bool:
    if step.kind in ("unregister", "mem_destroy"):
        # Allocations outlive a registration; what was mapped does not.
        return step.kind == "mem_destroy" or known.kind in ("map", "remap", "iova_alloc", "stream_map")
    if step.kind in _RANGE:
        return known.kind == "iova_alloc" and known.buffer == step.args.get("range")
    if step.kind in _BY_ADDRESS:
        iova = step.values.get("iova", step.args.get("iova"))
        return known.kind in _BY_ADDRESS[step.kind] and iova == known.start
    ours = {"free": "alloc", "unmap": "map"}[step.kind]
    refused = step.kind == "unmap" and step.returns not in (0, None)
    return known.kind == ours and known.buffer == step.args.get("buffer") and not refused


def find_range(ranges: Iterable[KnownRange], address: int) -> KnownRange | None:
    """The last range that has the address inside, or None."""
    inside = [known for known in ranges if known.start <= address < known.start + known.size]
    return inside[-1] if inside else None
