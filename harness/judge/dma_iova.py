"""The kernel's dma_iova_* calls, as they were recorded, against the rules of the API's document.

The rules are those of Documentation/core-api/dma-api.rst, part "IOVA-based DMA mappings", one sentence each in
:data:`RULES`. Every broken one is named with the call that breaks it. A recording without a call of the API, or one
that is not whole, is judged to have failed: nothing can be said of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.judge.words import listed
from harness.results import Check, Evidence, StepEvidence
from harness.scenario.expect import SHAPES, StepExpect
from harness.scenario.steps import Step

RULES: Final = {
    "no range": "a range that dma_iova_try_alloc gave is used until it is freed, and none after",
    "two ranges": "a state has one range at a time",
    "address": "the range begins at the physical address's place in its granule",
    "size": "the range has as many bytes as were asked for",
    "outside": "a link lies inside its range",
    "overlap": "no two links overlap",
    "start": "the start of all but the first link is aligned to the merge boundary",
    "end": "the size of all but the last link is aligned to the merge boundary",
    "mapping": "each link is one mapping of the whole granules that it lies in",
    "sync": "what is linked is synced before the device uses it",
    "unlinked": "what is unlinked was linked, in whole links",
    "free": "the IOVA space is freed when all is unlinked",
    "destroy": "what is destroyed is exactly what was linked",
    "unmapping": "what is linked is unmapped by one call, whole granules and nothing else",
    "direction": "what is unmapped has the direction that it was linked with",
    "end of range": "the range is freed in the end",
}
"""What is looked at, and the rule in words."""

_MAX_SHOWN = 400
_LARGE = 2  # granules of a link that is called large
_SEVERAL = 2
_TO_DEVICE, _FROM_DEVICE = 1, 2


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a call breaks.

    Args:
        rule: a key of :data:`RULES`.
        call: the call, in words.
        observed: what it did.
    """

    rule: str
    call: str
    observed: str

    def __str__(self) -> str:
        return f"{self.call}: {self.observed}; the rule: {RULES[self.rule]}"


@dataclass(slots=True)
class Link:
    """A link of a range: offset and bytes in the range, physical address, direction, and whether it was synced."""

    offset: int
    size: int
    phys: int
    direction: int
    synced: bool = False


@dataclass(slots=True)
class Use:
    """What was done with one range, from dma_iova_try_alloc on.

    Args:
        state: number of the state.
        calls: the calls, in order; the first one is dma_iova_try_alloc.
        ended: it was freed.
    """

    state: int
    calls: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @property
    def refused(self) -> bool:
        """Whether there is no range: dma_iova_try_alloc said no."""
        return not self.calls[0]["result"]


def sequences(calls: Sequence[dict[str, Any]]) -> list[Use]:
    """The calls of each range together, in the order of their beginnings; calls of a state without one are left out."""
    found: list[Use] = []
    live: dict[int, Use] = {}
    for call in calls:
        if call["call"] == "dma_iova_try_alloc":
            one = Use(call["state"], [call])
            found.append(one)
            if call["result"]:
                live[call["state"]] = one
        elif call.get("state") in live:
            one = live[call["state"]]
            one.calls.append(call)
            if call["call"] in ("dma_iova_free", "dma_iova_destroy"):
                one.ended = True
                del live[call["state"]]
    return found


def violations(calls: Sequence[dict[str, Any]], granule: int) -> list[Violation]:
    """Every rule that a recording's calls break.

    Args:
        calls: the calls, as ``harness.agent.iova_trace`` gives them, in the order in which they began.
        granule: bytes of the IOMMU's smallest page.

    Raises:
        KeyError, TypeError, ValueError: a call lacks an argument, or has one that is no number.
    """
    ranges: dict[int, _Range] = {}
    found: list[Violation] = []
    for call in calls:
        name, state = call["call"], call.get("state")
        if state is None:
            continue
        if name == "dma_iova_try_alloc":
            if state in ranges:
                found.append(Violation("two ranges", words(call), "its state has a range already"))
            if call["result"]:
                ranges[state] = _Range(call, granule)
                found += ranges[state].check_alloc(call)
        elif state not in ranges:
            found.append(Violation("no range", words(call), "its state has no range"))
        else:
            found += ranges[state].check(call)
            if name in ("dma_iova_free", "dma_iova_destroy"):
                del ranges[state]
    for one in ranges.values():
        found.append(Violation("end of range", words(one.first), "its range was never freed"))
    return found


def words(call: dict[str, Any]) -> str:
    """A call as a person would write it, with its time."""
    names = [name for name in ("phys", "offset", "size", "dir", "attrs") if name in call]
    values = [f"{name}={call[name]:#x}" if isinstance(call[name], int) else f"{name}={call[name]}" for name in names]
    result = f" = {call['result']}" if "result" in call else ""
    return f"{call['call']}(state {call.get('state')}, {', '.join(values)}){result} at {call['time']:.6f}"


class _Range:
    """A range and its links, as calls change them."""

    def __init__(self, call: dict[str, Any], granule: int) -> None:
        self.first = call
        self._granule = granule
        self._addr: int = call["addr"]
        self._size: int = call["size"]
        self._links: list[Link] = []
        self._failed = False  # a link or a sync did

    def check_alloc(self, call: dict[str, Any]) -> Iterator[Violation]:
        if call["addr"] % self._granule != call["phys"] % self._granule:
            yield Violation("address", words(call), f"the range begins at {call['addr']:#x}")
        if call["range"] != call["size"]:
            yield Violation("size", words(call), f"the range has {call['range']:#x} bytes")
        if call["maps"]:
            yield Violation("mapping", words(call), "it mapped something")

    def check(self, call: dict[str, Any]) -> Iterator[Violation]:
        """What of the rules a call breaks; the range is then as after the call."""
        one: dict[str, Any] = {
            "dma_iova_link": self._link,
            "dma_iova_sync": self._sync,
            "dma_iova_unlink": self._unlink,
            "dma_iova_free": self._free,
            "dma_iova_destroy": self._destroy,
        }
        check = one.get(call["call"])
        if check is not None:
            yield from check(call)

    def _link(self, call: dict[str, Any]) -> Iterator[Violation]:
        offset, size, phys, granule = call["offset"], call["size"], call["phys"], self._granule
        if call["result"]:
            self._failed = True
            if call["maps"] and not call["unmaps"]:
                yield Violation("mapping", words(call), "it failed, and left something mapped")
            return
        if not size or offset + size > self._size:
            yield Violation("outside", words(call), f"the range has {self._size:#x} bytes")
        if any(link.offset < offset + size and offset < link.offset + link.size for link in self._links):
            yield Violation("overlap", words(call), "another link lies there")
        place = self._addr + offset
        # The link at offset 0 begins at the place in its granule that the range was asked for.
        if phys % granule != place % granule or (offset and place % granule):
            yield Violation("start", words(call), f"it begins at the IOVA {place:#x}, its memory at {phys:#x}")
        behind = [link for link in self._links if link.offset > offset]
        for before in [link for link in self._links if link.offset < offset] if not behind else []:
            if (self._addr + before.offset + before.size) % granule:
                end = before.offset + before.size
                yield Violation("end", words(call), f"the link before it ends at the offset {end:#x}")
                break
        if behind and (place + size) % granule:
            yield Violation("end", words(call), "another link lies behind it")
        first = place - place % granule
        wanted = [first, phys - phys % granule, -(-(place + size) // granule) * granule - first]
        if call["maps"] != [wanted]:
            yield Violation(
                "mapping", words(call), f"expected the mapping {_rows([wanted])}, saw {_rows(call['maps'])}"
            )
        self._links.append(Link(offset, size, phys, call["dir"]))

    def _sync(self, call: dict[str, Any]) -> Iterator[Violation]:
        if call["result"]:
            self._failed = True
            return
        end = call["offset"] + call["size"]
        for link in self._links:
            if call["offset"] <= link.offset and link.offset + link.size <= end:
                link.synced = True
        if end > self._size:
            yield Violation("outside", words(call), f"the range has {self._size:#x} bytes")

    def _unlink(self, call: dict[str, Any]) -> Iterator[Violation]:
        first, end = call["offset"], call["offset"] + call["size"]
        inside = [link for link in self._links if first <= link.offset and link.offset + link.size <= end]
        touched = [link for link in self._links if link.offset < end and first < link.offset + link.size]
        if not inside or touched != inside or sum(link.size for link in inside) != call["size"]:
            yield Violation("unlinked", words(call), f"the links there are {_links(touched)}")
        yield from self._undone(call, inside, call["offset"], call["size"])
        self._links = [link for link in self._links if link not in touched]

    def _free(self, call: dict[str, Any]) -> Iterator[Violation]:
        if self._links:
            yield Violation("free", words(call), f"still linked: {_links(self._links)}")

    def _destroy(self, call: dict[str, Any]) -> Iterator[Violation]:
        linked = sorted(self._links, key=lambda link: link.offset)
        end = 0
        for link in linked:
            end = link.offset + link.size if link.offset == end else -1
        if end != call["size"]:
            yield Violation("destroy", words(call), f"the links are {_links(linked)}")
        yield from self._undone(call, linked, 0, call["size"])

    def _undone(self, call: dict[str, Any], links: list[Link], offset: int, size: int) -> Iterator[Violation]:
        """What of the rules the end of some links breaks."""
        unsynced = [link for link in links if not link.synced]
        # After a failure a driver takes back what it has linked, without a sync: no device uses it.
        if unsynced and not self._failed:
            yield Violation("sync", words(call), f"never synced: {_links(unsynced)}")
        if any(link.direction != call["dir"] for link in links):
            yield Violation("direction", words(call), f"the links are {_links(links)}")
        place = self._addr + offset
        first = place - place % self._granule
        whole = -(-(place + size) // self._granule) * self._granule - first
        wanted = [[first, whole, whole]] if size else []
        if call["unmaps"] != wanted:
            yield Violation("unmapping", words(call), f"expected {_rows(wanted)}, saw {_rows(call['unmaps'])}")


def _rows(rows: Sequence[Sequence[int]]) -> str:
    return "none" if not rows else listed(["(" + ", ".join(f"{one:#x}" for one in row) + ")" for row in rows])


def _links(links: Sequence[Link]) -> str:
    return "none" if not links else listed([f"{one.offset:#x}+{one.size:#x} (dir {one.direction})" for one in links])


def shapes(calls: Sequence[dict[str, Any]], granule: int) -> dict[str, int]:
    """How many ranges, links and calls of each shape a recording has; see ``SHAPES`` of ``harness.scenario.expect``.

    ``ranges`` are those that were allocated, had a link and were freed.
    """
    count = dict.fromkeys(("ranges", *SHAPES), 0)
    for one in sequences(calls):
        links = [call for call in one.calls if call["call"] == "dma_iova_link" and not call["result"]]
        count["refused"] += one.refused
        if not links or not one.ended:
            continue
        first, last = links[0], links[-1]
        count["ranges"] += 1
        count["several_links"] += len(links) >= _SEVERAL
        count["unaligned_first"] += first["phys"] % granule != 0
        count["unaligned_last"] += (last["phys"] + last["size"]) % granule != 0
        count["large_link"] += any(link["size"] >= _LARGE * granule for link in links)
        count["to_device"] += first["dir"] == _TO_DEVICE
        count["from_device"] += first["dir"] == _FROM_DEVICE
    count["streaming"] = sum(call["call"] == "dma_map_phys" for call in calls)
    return count


def check_recordings(steps: Sequence[Step], evidence: Evidence) -> list[Check]:
    """Checks of every recording that ended: that it is whole, that it has in it what it should, and the rules.

    Args:
        steps: the scenario's steps.
        evidence: what ran.
    """
    checks: list[Check] = []
    for seen in evidence.steps:
        if seen.kind == "trace_end" and seen.error is None and seen.index < len(steps):
            checks += _recording(steps[seen.index].expect, seen)
    return checks


def _recording(expect: StepExpect, seen: StepEvidence) -> Iterator[Check]:
    name = f"recording {seen.args.get('name')}"
    try:
        calls, granule, counts = seen.values["calls"], seen.values["granule"], seen.values["counts"]
        missing = [f"{counts[key]} {what}" for key, what in _NOT_WHOLE.items() if counts[key]]
        have = shapes(calls, granule)
        broken = violations(calls, granule)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield _check(name, seen, f"no calls that can be read ({type(error).__name__}: {error})", "calls", good=False)
        return
    api = sum("state" in call for call in calls)
    yield _check(
        f"{name}: whole", seen, listed(missing) or f"{api} calls of the API", "every call of the API", good=not missing
    )
    wanted = expect.shapes or ("ranges",)
    lacks = [shape for shape in wanted if not have[shape]]
    # Where the API is refused there is no range at all.
    if "refused" in wanted and have["ranges"]:
        lacks.append("nothing but refusals")
    observed = ", ".join(f"{shape} {number}" for shape, number in have.items() if number) or "nothing"
    yield _check(f"{name}: shapes", seen, observed, f"some of each: {', '.join(wanted)}", good=not lacks)
    said = listed([str(one) for one in broken])[:_MAX_SHOWN] if broken else f"{api} calls, none breaks one"
    yield _check(f"{name}: rules", seen, said, "calls that keep the document's rules", good=not broken and api > 0)


_NOT_WHOLE = {
    "cut": "calls that were cut off",
    "lost": "events that the kernel lost",
    "unpaired": "calls of which only one end was seen",
    "unread": "lines that are not known",
}


def _check(name: str, seen: StepEvidence, observed: str, expected: str, *, good: bool) -> Check:
    message = observed if good else f"expected {expected}, observed {observed}"
    return Check(name=name, passed=good, message=message, expected=expected, observed=observed, step=seen.index)
