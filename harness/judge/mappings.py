"""Whether a range of IOVAs leads where it should, by what the IOMMU's own tables say.

Where each page should lead to is the kernel's word on the program's memory (pagemap). Two witnesses say where it does:
the tables as the host reads them out of the guest's memory, and the kernel's debugfs where it has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.judge.aspect import NOT_SAID, Aspect
from harness.results import StepEvidence
from harness.scenario.expect import StepExpect

PAGE = 4096
_UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))
_TRANSLATED = "translated"
# A row of each list in the evidence.
_PIECE = (int, int, int)  # offset, physical address, bytes
_RUN = (int, int, int, int, str)  # iova, physical address, bytes, bytes of a page, access


@dataclass(frozen=True)
class Place:
    """An IOVA that does not lead to where it should.

    Args:
        iova: the first one.
        wanted: the buffer's physical page there; None where it has none, or nobody asked.
        found: where the tables lead; None for nowhere.
    """

    iova: int
    wanted: int | None
    found: int | None

    def __str__(self) -> str:
        leads = "leads nowhere" if self.found is None else f"leads to {self.found:#x}"
        wanted = "" if self.wanted is None else f", the buffer's page is {self.wanted:#x}"
        none = ", the buffer has no page there" if self.wanted is None and self.found is not None else ""
        return f"IOVA {self.iova:#x} {leads}{wanted}{none}"


@dataclass
class Mapping:
    """What became of a range.

    Args:
        way: what the IOMMU does with the device's DMA, in words.
        untranslated: every IOVA is the physical address itself: no table says anything.
        counts: pages of 4 KiB by name: mapped, unmapped, wrong, readable, writable.
        page_sizes: bytes of the pages that map it, ascending.
        one_to_one: every mapped IOVA is its physical address.
        wrong: the first IOVA that leads to what is not the buffer's.
        gap: the first IOVA that leads nowhere.
    """

    way: str
    untranslated: bool = False
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("mapped", "unmapped", "wrong", "readable", "writable"), 0)
    )
    page_sizes: tuple[int, ...] = ()
    one_to_one: bool = True
    wrong: Place | None = None
    gap: Place | None = None

    @property
    def kind(self) -> str:
        """``untranslated``, ``wrong``, ``none``, ``partial``, ``one_to_one`` or ``whole``."""
        if self.untranslated:
            return "untranslated"
        if self.wrong is not None:
            return "wrong"
        if not self.counts["mapped"]:
            return "none"
        if self.counts["unmapped"]:
            return "partial"
        return "one_to_one" if self.one_to_one else "whole"

    def __str__(self) -> str:
        counts = self.counts
        total = counts["mapped"] + counts["unmapped"]
        if self.untranslated or self.way != _TRANSLATED:
            return f"{self.kind} ({self.way})"
        if not counts["mapped"]:
            return f"none: 0 of {total} pages mapped"
        text = f"{self.kind}: {counts['mapped']} of {total} pages mapped"
        text += f" by {_pages(self.page_sizes)}, {counts['writable']} of them writable"
        if self.wrong is not None:
            return f"{text}, {counts['wrong']} wrong: {self.wrong}"
        return text if self.gap is None else f"{text}; {self.gap}"


def mapping(seen: StepEvidence) -> Mapping | None:
    """Classify what a step ``mappings`` observed; None when the evidence does not say it, or makes no sense."""
    tables, first, size = seen.values.get("tables"), seen.values.get("iova"), seen.args.get("size")
    if not isinstance(tables, dict) or not isinstance(first, int) or not isinstance(size, int) or size <= 0:
        return None
    runs = _rows(tables.get("runs"), _RUN)
    pages = seen.values.get("pages")
    pieces = None if pages is None else _rows(pages, _PIECE)
    if runs is None or (pieces is None) is not (pages is None):
        return None
    found = Mapping(way=str(tables.get("way", "")), untranslated=tables.get("untranslated") is True)
    if not found.untranslated:
        _fill(found, first, size, runs, pieces)
    return found


def _rows(rows: Any, types: tuple[type, ...]) -> list[tuple[Any, ...]] | None:
    """A list of rows of these types in ascending order, the third a positive size; None for anything else."""
    if not isinstance(rows, list | tuple):
        return None
    checked: list[tuple[Any, ...]] = []
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != len(types):
            return None
        if any(type(one) is not kind for one, kind in zip(row, types, strict=True)) or row[2] <= 0:
            return None
        if checked and row[0] < checked[-1][0] + checked[-1][2]:
            return None
        checked.append(tuple(row))
    return checked


def _fill(
    found: Mapping, first: int, size: int, runs: Sequence[tuple[Any, ...]], pieces: Sequence[tuple[Any, ...]] | None
) -> None:
    """Go through the range from piece to piece in which neither the tables nor the buffer's pages change."""
    end, at, run, piece = first + size, first, 0, 0
    sizes: set[int] = set()
    while at < end:
        while run < len(runs) and runs[run][0] + runs[run][2] <= at:
            run += 1
        while pieces and piece < len(pieces) and first + pieces[piece][0] + pieces[piece][2] <= at:
            piece += 1
        here = runs[run] if run < len(runs) else None
        own = (first + pieces[piece][0], *pieces[piece][1:]) if pieces and piece < len(pieces) else None
        leads, stop = _at(here, at, end)
        wanted, stop = _at(own, at, stop)
        pages = (stop - at) // PAGE
        if leads is None or here is None:
            found.counts["unmapped"] += pages
            found.gap = found.gap or Place(at, wanted, None)
        else:
            sizes.add(here[3])
            found.counts["mapped"] += pages
            found.counts["readable"] += pages * ("r" in here[4])
            found.counts["writable"] += pages * ("w" in here[4])
            found.one_to_one = found.one_to_one and leads == at
            if pieces is not None and leads != wanted:
                found.counts["wrong"] += pages
                found.wrong = found.wrong or Place(at, wanted, leads)
        at = stop
    found.page_sizes = tuple(sorted(sizes))


def _at(row: tuple[Any, ...] | None, at: int, end: int) -> tuple[int | None, int]:
    """Where a row (start, physical address, bytes, ...) leads at a place, and how far that, or nothing, goes on."""
    if row is None or row[0] >= end:
        return None, end
    if at < row[0]:
        return None, row[0]
    return row[1] + at - row[0], min(end, row[0] + row[2])


_WANTED = {
    "one_to_one": "every page mapped, to the buffer's own, at its physical address",
    "whole": "every page mapped, to the buffer's own",
    "none": "nothing mapped",
    "partial": "some pages mapped, to the buffer's own, and others not",
    "untranslated": "no translation",
}


def mapping_aspects(expect: StepExpect, seen: StepEvidence) -> Iterator[Aspect]:
    """What is looked at in a step ``mappings``.

    That a page leads to what is not the buffer's fails whatever is expected, and so do witnesses that disagree, and
    tables of another mode than the machine's: the kernel falls back to legacy mode without a word.
    """
    found = mapping(seen)
    expected = "no page mapped to what is not the buffer's" if expect.mapped is None else _WANTED[expect.mapped]
    if found is None:
        yield Aspect(good=False, expected=expected, observed=NOT_SAID)
        return
    kinds = {expect.mapped, "one_to_one"} if expect.mapped == "whole" else {expect.mapped}
    good = found.kind != "wrong" and (expect.mapped is None or found.kind in kinds)
    yield Aspect(good=good, expected=expected, observed=str(found))
    tables = seen.values["tables"]
    if tables.get("mode") != tables.get("asked"):
        wanted_mode = f"tables of {tables.get('asked')} mode"
        yield Aspect(good=False, expected=wanted_mode, observed=f"tables of {tables.get('mode')} mode")
    if expect.page_sizes is not None:
        wanted = tuple(sorted(expect.page_sizes))
        good = found.page_sizes == wanted
        yield Aspect(good=good, expected=_pages(wanted), observed=_pages(found.page_sizes))
    for name, count in (expect.counts or {}).items():
        number = found.counts.get(name)
        observed = NOT_SAID if number is None else f"{name} {number}"
        yield Aspect(good=number == count, expected=f"{name} {count}", observed=observed)
    yield from _witnesses(seen)


def _witnesses(seen: StepEvidence) -> Iterator[Aspect]:
    """Whether the kernel's debugfs says what the tables say; nothing where the kernel has none."""
    if seen.values.get("debugfs") is None:
        return
    expected = "tables and debugfs that agree"
    kernel, host = (_rows(rows, _RUN) for rows in (seen.values["debugfs"], seen.values["tables"].get("runs")))
    if kernel is None or host is None:
        yield Aspect(good=False, expected=expected, observed=NOT_SAID)
        return
    place = next((n for n in range(max(len(kernel), len(host))) if kernel[n : n + 1] != host[n : n + 1]), None)
    if place is None:
        yield Aspect(good=True, expected=expected, observed=f"debugfs agrees in {len(host)} runs")
        return
    says = " and ".join(
        f"{who} {_run(rows[place]) if place < len(rows) else 'nothing more'}"
        for who, rows in (("the tables say", host), ("debugfs says", kernel))
    )
    yield Aspect(good=False, expected=expected, observed=f"at run {place} {says}")


def _run(row: tuple[Any, ...]) -> str:
    iova, physical, size, page, access = row
    return f"{iova:#x} to {physical:#x}, {_sizes((size,))} by {_sizes((page,))}, {access}"


def _sizes(sizes: Sequence[int]) -> str:
    """Sizes as people write them: ``4K, 2M``."""
    return ", ".join(_size(size) for size in sizes)


def _pages(sizes: Sequence[int]) -> str:
    return f"pages of {_sizes(sizes)}" if sizes else "no pages"


def _size(size: int) -> str:
    return next((f"{size // unit}{name}" for unit, name in _UNITS if size and size % unit == 0), str(size))
