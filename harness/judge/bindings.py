"""Which IOVA a buffer or range had at a point of a scenario, from what the steps before it observed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.results import StepEvidence
from harness.scenario.steps import Nested, Step

_NAMING = {
    "alloc": "as",
    "map": "buffer",
    "container_map": "buffer",
    "physical_address": "buffer",
    "remap": "buffer",
    "iova_alloc": "as",
    "stream_map": "buffer",
}


class Bindings:
    """The IOVAs of buffers and ranges, which have names of their own each, over the course of the steps.

    Args:
        steps: the scenario's steps, for the ids of a fork's children.
        evidence: what ran.
    """

    def __init__(self, steps: Sequence[Step], evidence: Iterable[StepEvidence]) -> None:
        self._steps = steps
        self._evidence = sorted(evidence, key=lambda seen: seen.index)

    def iova(self, buffer: str, step: int, child: str | None = None) -> int | None:
        """The IOVA of the start of a buffer or range as the step finds it; None when it has had none by then.

        Args:
            buffer: the name of the buffer or range.
            step: index of the step.
            child: id of the child of a fork; None for the step itself, or where nobody knows which child it was: then
                the last one that gave the buffer an IOVA counts.
        """
        found: int | None = None
        for seen in self._evidence:
            if seen.index < step:
                found = _next(found, buffer, seen)
            elif seen.index == step:
                # What a child maps is mapped in the child only: it counts in this step and in no later one.
                for inner in seen.children[: self._children_before(step, child)]:
                    found = _next(found, buffer, inner)
        return found

    def _children_before(self, step: int, child: str | None) -> int | None:
        args = self._steps[step].args if 0 <= step < len(self._steps) else None
        if child is None or not isinstance(args, Nested):
            return None
        return next((position for position, one in enumerate(args.steps) if one.id == child), None)


def _next(before: int | None, buffer: str, seen: StepEvidence) -> int | None:
    """The IOVA after one more step: its own when it gave the buffer one, else that from before."""
    key = _NAMING.get(seen.kind)
    if key is None or seen.args.get(key) != buffer or seen.error is not None:
        return before
    iova = seen.values.get("iova")
    if not isinstance(iova, int) or isinstance(iova, bool) or (iova == 0 and seen.kind in ("alloc", "map")):
        # USDM says 0 for a mapping that failed.
        return before
    # What a range begins with is its memory at that offset, so that is no offset of the range.
    offset = None if seen.kind == "iova_alloc" else seen.args.get("offset")
    # A mapping of a part gives the part's IOVA; the buffer's start, mapped or not, lies that far before it.
    return iova - offset if isinstance(offset, int) else iova
