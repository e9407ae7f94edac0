"""A qualification on a terminal: failures, known failures, what was not run, changes, and the verdict at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from rich.console import Console
from rich.text import Text

from harness.qualified.records import Qualification, QualifiedCell, Standing
from harness.report.points import as_point, by_reason, point_text
from harness.report.text import one_line, reasons
from harness.report.verdict import BAD, counts_text, sentence, what_changed

_REASONS: Final = 3
_FAILURES: Final = 40
_GROUPS: Final = 12
_NAMES: Final = 12


def print_qualification(one: Qualification, console: Console) -> None:
    """Print the summary, the verdict last, where a reader looks first."""
    for line in _lines(one):
        console.print(line, soft_wrap=True, highlight=False)


def _lines(one: Qualification) -> Iterator[Text]:
    bad = [cell for cell in one.cells if cell.standing in BAD]
    for cell in bad[:_FAILURES]:
        yield from _cell(cell)
    if len(bad) > _FAILURES:
        yield Text(f"and {len(bad) - _FAILURES} more failures")
    known = Counter(
        one_line(f"{cell.known.reason} ({cell.known.link}, until {cell.known.until})")
        for cell in one.cells
        if cell.standing is Standing.KNOWN and cell.known is not None
    )
    yield from _counted("known failures", known)
    yield from _listed(
        "known failures that did not happen", (f"{e.scenario}: {e.reason}  {e.place}" for e in one.stale)
    )
    yield from _counted("not run", Counter({reason.text: reason.points for reason in by_reason(one.not_run)}))
    if one.comparison is not None:
        change = one.comparison
        for title, names in what_changed(change):
            yield from _listed(title, names)
        if not change.changed:
            yield from (Text(), Text(f"since {one_line(change.folder or change.before)}: nothing changed"))
    yield from _listed("notes", one.notes)
    yield Text()
    yield Text(f"{counts_text(one)}, {one.seconds:.0f} s")
    style = "bold red" if bad else "bold green" if one.complete and one.cells else "bold yellow"
    yield Text(sentence(one), style=style)


def _cell(cell: QualifiedCell) -> Iterator[Text]:
    result = cell.result
    yield Text()
    head = Text.assemble((f"{result.outcome.upper():<5}", "red"), f" {one_line(cell.scenario)}")
    head.append(f"  {point_text(as_point(cell.point))}", style="dim")
    head.append(f"  {result.failure_class or ''}")
    yield head
    why = reasons(result)
    facts = [("reason", reason) for reason in why[:_REASONS]]
    if len(why) > _REASONS:
        facts.append(("reason", f"and {len(why) - _REASONS} more, see the folder"))
    if cell.attempts[0] is not result:
        facts.append(("attempts", f"{len(cell.attempts)}; before: {cell.attempts[0].message}"))
    facts += [("note", cell.note), ("hint", result.hint or ""), ("folder", result.folder), ("rerun", result.rerun)]
    for name, text in facts:
        if text:
            yield Text.assemble("       ", (f"{name}: ", "dim"), one_line(text))


def _counted(title: str, found: Counter[str]) -> Iterator[Text]:
    lines = [f"{number:5}  {text}" for text, number in found.most_common(_GROUPS)]
    more = len(found) - len(lines)
    yield from _block(title, sum(found.values()), lines, f"and {more} further reasons" if more else "")


def _listed(title: str, names: Iterable[str]) -> Iterator[Text]:
    found = [one_line(name) for name in names]
    more = len(found) - _NAMES
    yield from _block(
        title, len(found), [f"  {name}" for name in found[:_NAMES]], f"  and {more} more" if more > 0 else ""
    )


def _block(title: str, number: int, lines: list[str], more: str) -> Iterator[Text]:
    if lines:
        yield Text()
        yield Text(f"{title}: {number}", style="bold")
        yield from (Text(line) for line in [*lines, *([more] if more else [])])
