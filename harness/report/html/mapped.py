"""What was mapped where and for how long, as a cell's steps tell it: the data of the picture of the IOVA space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from harness.results import Evidence, StepEvidence

_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Span:
    """A range of IOVAs that something has for some steps.

    Args:
        name: the buffer or range, as the scenario calls it.
        first: its first IOVA.
        size: bytes, >= 1.
        access: ``r``, ``w`` or ``rw``; empty for IOVAs that are only reserved.
        since: index of the step that made it.
        until: index of the step that ended it; None when none did.
        owner: what ends it: ``usdm``, ``user``, ``container``, ``remap``, ``range``, ``stream``,
            ``domain``; with a name.
        offset: where in the buffer or range it begins.
    """

    name: str
    first: int
    size: int
    access: str
    since: int
    until: int | None = None
    owner: tuple[str, str] = ("", "")
    offset: int = 0

    @property
    def end(self) -> int:
        """One past its last IOVA."""
        return self.first + self.size


@dataclass(frozen=True, slots=True)
class Reach:
    """A DMA: the step, its first IOVA, its bytes, whether the device wrote memory."""

    step: int
    first: int
    size: int
    write: bool


@dataclass(slots=True)
class _Space:
    """The state while the steps are followed."""

    done: list[Span] = field(default_factory=list)
    live: list[Span] = field(default_factory=list)
    pending: list[Span] = field(default_factory=list)
    registered: bool = False
    waiting: list[Span] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, span: Span) -> None:
        self.live.append(span)

    def cut(self, step: int, first: int, end: int, chosen: Callable[[Span], bool]) -> None:
        """End what the chosen spans have in ``[first, end)``; what they have beside it goes on."""
        kept = []
        for span in self.live:
            low, high = max(first, span.first), min(end, span.end)
            if low >= high or not chosen(span):
                kept.append(span)
                continue
            self.done.append(
                replace(span, first=low, size=high - low, until=step, offset=span.offset + low - span.first)
            )
            if span.first < low:
                kept.append(replace(span, size=low - span.first))
            if high < span.end:
                kept.append(replace(span, first=high, size=span.end - high, offset=span.offset + high - span.first))
        self.live = kept

    def end(self, step: int, chosen: Callable[[Span], bool]) -> None:
        """End the chosen spans wholly."""
        self.cut(step, 0, 1 << 65, chosen)


def spans_of(evidence: Evidence) -> tuple[Span, ...]:
    """Mappings and reservations in the order of the steps that made them.

    Only what the steps' own answers say is told: a mapping without an IOVA in its answer (``map_each``) is not there,
    nor what a child of a fork did.
    """
    space = _Space()
    for step in evidence.steps:
        if step.error is None and (act := _ACTS.get(step.kind)) is not None:
            act(space, step)
    return tuple(sorted((*space.done, *space.live), key=lambda span: (span.since, span.first)))


def reaches_of(evidence: Evidence) -> tuple[Reach, ...]:
    """The DMAs whose IOVA is known."""
    return tuple(_reaches(evidence))


def tables_of(evidence: Evidence) -> tuple[tuple[int, int, int, str], ...]:
    """What the IOMMU's tables said when they were read: step, first IOVA, bytes, access of each piece."""
    found = []
    for step in evidence.steps:
        tables = step.values.get("tables")
        for row in _rows(tables.get("runs")) if isinstance(tables, dict) else ():
            found.append((step.index, row[0], row[2], str(row[4])))
    return tuple(found)


def _reaches(evidence: Evidence) -> Iterator[Reach]:
    for step in evidence.steps:
        if step.kind in ("dma_read", "dma_write"):
            first = _int(step.values.get("iova", step.args.get("iova")))
            if first is not None:
                yield Reach(step.index, first, max(_int(step.args.get("size")) or 1, 1), step.kind == "dma_write")


def _rows(rows: Any) -> Iterator[list[Any]]:
    for row in rows if isinstance(rows, list | tuple) else ():
        if isinstance(row, list | tuple) and len(row) > 4 and _int(row[0]) is not None and _int(row[2]):
            yield list(row)


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _span(step: StepEvidence, owner: str, name: str, access: str = "rw") -> Span | None:
    """The span that a step made whose answer has the IOVA and whose arguments have the size."""
    first = _int(step.values.get("iova", step.args.get("iova")))
    size = _int(step.args.get("size", _PAGE))
    if first is None or not size:
        return None
    offset = _int(step.args.get("offset")) or 0
    return Span(name, first, size, access, step.index, owner=(owner, name), offset=offset)


def _made(owner: str, key: str) -> Callable[[_Space, StepEvidence], None]:
    def act(space: _Space, step: StepEvidence) -> None:
        access = {"read": "r", "write": "w"}.get(str(step.args.get("access")), "rw")
        span = _span(step, owner, str(step.args.get(key, "")), access)
        if span is not None:
            space.add(span)

    return act


def _ended(owner: str) -> Callable[[_Space, StepEvidence], None]:
    """A step that ends what of its owner's lies in its IOVAs."""

    def act(space: _Space, step: StepEvidence) -> None:
        first = _int(step.args.get("iova", step.values.get("iova")))
        size = _int(step.args.get("size", _PAGE))
        if first is not None and size:
            space.cut(step.index, first, first + size, lambda span: span.owner[0] == owner)

    return act


def _register(space: _Space, step: StepEvidence) -> None:
    if step.returns == 0:
        space.registered = True
        space.live += [replace(span, since=step.index) for span in space.waiting]
        space.waiting = []


def _unregister(space: _Space, step: StepEvidence) -> None:
    if step.returns in (0, None):
        space.registered = False
        left = [span for span in space.live if span.owner[0] == "usdm"]
        space.end(step.index, lambda span: span.owner[0] in ("usdm", "user", "remap"))
        # USDM's own memory is mapped again by the next registration.
        space.waiting += left


def _alloc(space: _Space, step: StepEvidence) -> None:
    span = _span(step, "usdm", str(step.args.get("as", "")))
    if span is not None:
        (space.live if space.registered else space.waiting).append(replace(span, offset=0))


def _free(space: _Space, step: StepEvidence) -> None:
    owner = ("usdm", str(step.args.get("buffer", "")))
    space.end(step.index, lambda span: span.owner == owner)
    space.waiting = [span for span in space.waiting if span.owner != owner]


def _destroy(space: _Space, step: StepEvidence) -> None:
    space.end(step.index, lambda span: span.owner[0] in ("usdm", "user"))
    space.waiting = []


def _buffer(space: _Space, step: StepEvidence) -> None:
    address = _int(step.values.get("address"))
    if address is not None:
        space.places[str(step.args.get("as"))] = address


def _unmap(space: _Space, step: StepEvidence) -> None:
    """qaeMemUnmapContiguousIova, by buffer and offset or by address; of the bare tier, by domain and IOVA."""
    if "domain" in step.args:
        _ended("domain")(space, step)
        return
    count = _int(step.values.get("done")) or 1
    size = (_int(step.args.get("size")) or 0) * count
    name, offset = step.args.get("buffer"), _int(step.args.get("offset")) or 0
    address = _int(step.args.get("address"))
    if name is None and address is not None:
        below = [(place, known) for known, place in space.places.items() if place <= address]
        if not below:
            return
        place, name = max(below)
        offset = address - place
    owner = ("user", str(name))
    for span in [one for one in space.live if one.owner == owner]:
        first = span.first - span.offset + offset
        space.cut(step.index, first, first + size, lambda one, which=span: one is which)  # type: ignore[misc]


def _map(space: _Space, step: StepEvidence) -> None:
    bare = "domain" in step.args
    _made("domain" if bare else "user", "domain" if bare else "buffer")(space, step)


def _reserve(space: _Space, step: StepEvidence) -> None:
    first, size = _int(step.values.get("iova")), _int(step.args.get("size"))
    if step.returns == 1 and first is not None and size:
        name = str(step.args.get("as"))
        space.ranges[name] = (first, size)
        space.add(Span(name, first, size, "", step.index, owner=("reserved", name)))


def _link(space: _Space, step: StepEvidence) -> None:
    """A link counts from the next sync of its place on: only then is it mapped."""
    name = str(step.args.get("range"))
    size, at = _int(step.args.get("size")) or 0, _int(step.args.get("at")) or 0
    size *= (_int(step.values.get("done")) or 0) if step.kind.endswith("_each") else 1
    if name in space.ranges and size and (step.returns == 0 or step.kind.endswith("_each")):
        access = {"to_device": "r", "from_device": "w"}.get(str(step.args.get("direction")), "rw")
        first = space.ranges[name][0] + at
        space.pending.append(Span(name, first, size, access, step.index, owner=("range", name), offset=at))


def _sync(space: _Space, step: StepEvidence) -> None:
    name = str(step.args.get("range"))
    if step.returns not in (0, None) or name not in space.ranges:
        return
    first = space.ranges[name][0] + (_int(step.args.get("at")) or 0)
    end = first + (_int(step.args.get("size")) or space.ranges[name][1])
    left = []
    for span in space.pending:
        low, high = max(first, span.first), min(end, span.end)
        if span.owner != ("range", name) or low >= high:
            left.append(span)
            continue
        space.add(replace(span, first=low, size=high - low, since=step.index, offset=span.offset + low - span.first))
        if span.first < low:
            left.append(replace(span, size=low - span.first))
        if high < span.end:
            left.append(replace(span, first=high, size=span.end - high, offset=span.offset + high - span.first))
    space.pending = left


def _unlink(space: _Space, step: StepEvidence) -> None:
    name = str(step.args.get("range"))
    if name not in space.ranges:
        return
    first = space.ranges[name][0] + (_int(step.args.get("at")) or 0)
    size = _int(step.args.get("size")) or space.ranges[name][1]
    space.cut(step.index, first, first + size, lambda span: span.owner == ("range", name))
    space.pending = [
        span
        for span in space.pending
        if span.owner != ("range", name) or span.end <= first or span.first >= first + size
    ]
    if step.kind == "iova_destroy":
        _give_back(space, step)


def _give_back(space: _Space, step: StepEvidence) -> None:
    name = str(step.args.get("range"))
    space.end(step.index, lambda span: span.owner == ("reserved", name))


_ACTS: Final[dict[str, Callable[[_Space, StepEvidence], None]]] = {
    "register": _register,
    "unregister": _unregister,
    "alloc": _alloc,
    "free": _free,
    "mem_destroy": _destroy,
    "buffer": _buffer,
    "map": _map,
    "unmap": _unmap,
    "unmap_each": _unmap,
    "container_map": _made("container", "buffer"),
    "container_unmap": _ended("container"),
    "remap": _made("remap", "buffer"),
    "unremap": _ended("remap"),
    "stream_map": _made("stream", "buffer"),
    "stream_unmap": _ended("stream"),
    "iova_alloc": _reserve,
    "iova_link": _link,
    "iova_link_each": _link,
    "iova_sync": _sync,
    "iova_unlink": _unlink,
    "iova_destroy": _unlink,
    "iova_free": _give_back,
}
