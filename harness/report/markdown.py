"""A qualification as Markdown for a pull request: verdict, points, failures, changes, what was not run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from harness.qualified.records import Qualification, QualifiedCell, Standing
from harness.report.evidence import steps_table
from harness.report.points import Point, as_point, by_reason, point_of, point_text, points_of, varying
from harness.report.text import clean, is_web_link, one_line, reasons, write_text
from harness.report.verdict import BAD, counts_text, sentence, totals, what_changed

LIMIT: Final = 65_536
"""Characters that GitHub takes in a comment."""

_ROOM: Final = 400
_POINTS: Final = 60
_NAMES: Final = 30
_REASON: Final = 200
_REASONS: Final = 3
_STEPS: Final = 6_000
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#+!|~@&$])")


def markdown(one: Qualification, limit: int = LIMIT) -> str:
    """The summary.

    Args:
        one: the qualification.
        limit: characters at most; what does not fit is left out from the end on, and a line says so.
    """
    text, left = "", 0
    for part in _parts(one):
        if left or len(text) + len(part) > limit - _ROOM:
            left += 1
            continue
        text += part
    if left:
        text += f"\n_{left} further part{'s' * (left != 1)} left out: a comment has {limit:,} characters at most._\n"
    return text


def write_markdown(one: Qualification, path: Path) -> Path:
    """Write the summary and return the file's path."""
    return write_text(path, markdown(one))


def _parts(one: Qualification) -> Iterator[str]:
    """Pieces that stand by themselves, the most important ones first."""
    bad = [cell for cell in one.cells if cell.standing in BAD]
    mark = "❌" if bad else "✅" if one.complete and one.cells else "⚠️"
    yield f"### {mark} {_text(one.title) or 'harness'}\n\n**{_text(sentence(one))}**\n\n{_text(counts_text(one))}.\n"
    yield from _points(one)
    if one.comparison is not None:
        change = one.comparison
        yield f"\n#### Changes since {_text(change.before) or 'the earlier one'}\n"
        for title, names in what_changed(change):
            yield from _names(title, names)
        if not change.changed:
            yield "\nNothing changed.\n"
    if bad:
        yield f"\n#### Failures ({len(bad)})\n\n"
        yield from (_failure(cell) for cell in bad)
    known = [cell for cell in one.cells if cell.standing is Standing.KNOWN and cell.known]
    if known:
        yield f"\n#### Known failures ({len(known)})\n\n"
        groups: dict[tuple[str, str, str], int] = {}
        for cell in known:
            assert cell.known is not None  # noqa: S101 - chosen above
            key = cell.known.reason, cell.known.link, str(cell.known.until)
            groups[key] = groups.get(key, 0) + 1
        yield from (f"* {n} × {_text(why)} ({_link(link)}), until {day}\n" for (why, link, day), n in groups.items())
    yield from _names(
        "known failures that did not happen", (f"{entry.scenario}: {entry.reason}" for entry in one.stale)
    )
    if one.not_run:
        yield _not_run(one)
    yield from _names("notes", one.notes)


def _not_run(one: Qualification) -> str:
    """Reasons with the number of points that each stands for, the most frequent first, as one piece."""
    reasons = by_reason(one.not_run)
    lines = [f"* {reason.points} × {_text(reason.text[:_REASON])}\n" for reason in reasons[:_NAMES]]
    if len(reasons) > _NAMES:
        lines.append(f"* and {len(reasons) - _NAMES} further reasons\n")
    head = f"\n<details><summary>Not run ({sum(reason.points for reason in reasons)})</summary>\n\n"
    return head + "".join(lines) + "\n</details>\n"


def _points(one: Qualification) -> Iterator[str]:
    """A row for each point, those with failures first."""
    axes = varying(one.axes)
    if not axes:
        return
    rows: list[tuple[bool, str]] = []
    for point in points_of(one):
        cells = [cell for cell in one.cells if point_of(cell, axes) == point]
        if cells:
            number = totals(cells)
            fails = sum(number[standing] for standing in BAD)
            numbers = number[Standing.PASS], fails, number[Standing.KNOWN]
            rows.append(
                (not fails, f"| {'❌' if fails else '✅'} {_point(point)} | {' | '.join(map(str, numbers))} |\n")
            )
    if len(rows) < 2:
        return
    rows.sort(key=lambda row: row[0])
    more = f"\n{len(rows) - _POINTS} further points are left out.\n" if len(rows) > _POINTS else ""
    head = "\n| point | passed | failed | known |\n|---|---:|---:|---:|\n"
    yield head + "".join(row for _, row in rows[:_POINTS]) + more


def _failure(cell: QualifiedCell) -> str:
    result = cell.result
    why = reasons(result) or ["no reason was given"]
    lines = [f"* {_text(reason)}" for reason in why[:_REASONS]]
    if len(why) > _REASONS:
        lines.append(f"* and {len(why) - _REASONS} more")
    if cell.attempts[0] is not result:
        lines.append(f"* attempt {len(cell.attempts)}; before: {_text(cell.attempts[0].message)}")
    if cell.note:
        lines.append(f"* {_text(cell.note)}")
    rerun = _fenced(one_line(result.rerun)) if result.rerun else ""
    table = steps_table(result)
    steps = f"\n{_fenced(clean(table))}" if table and cell.result.reference is None and len(table) < _STEPS else ""
    head = f"<code>{_html(cell.scenario)}</code> {_html(point_text(as_point(cell.point)))}"
    listed = "\n".join(lines)
    summary = f"<details><summary>{head}: {_html(result.failure_class or result.outcome)}</summary>"
    return f"{summary}\n\n{listed}\n\n{rerun}{steps}\n</details>\n\n"


def _names(title: str, names: Iterable[str]) -> Iterator[str]:
    found = list(names)
    if found:
        shown = "".join(f"* {_text(name)}\n" for name in found[:_NAMES])
        more = f"* and {len(found) - _NAMES} more\n" if len(found) > _NAMES else ""
        yield f"\n**{title} ({len(found)})**\n\n{shown}{more}"


def _point(point: Point) -> str:
    return _text(point_text(point)) or "without a guest"


def _text(text: str) -> str:
    """Text as text: nothing in it is taken for Markdown, HTML or somebody's name."""
    return (
        _SPECIAL.sub(r"\\\1", one_line(text)).replace("\\@", "@\u200b").replace("\\<", "&lt;").replace("\\&", "&amp;")
    )


def _link(text: str) -> str:
    """A link to the web as a link, which has no escapes; anything else as text."""
    return f"<{one_line(text)}>" if is_web_link(text) else _text(text)


def _html(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")


def _fenced(text: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}\n"
