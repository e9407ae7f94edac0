"""What a qualification comes to: the sentence that a release manager can forward, the counts, the exit code."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Final

from harness.errors import INTERRUPTED, FailureClass, worst_exit_code
from harness.qualified.records import Comparison, Qualification, QualifiedCell, Standing
from harness.report.points import Point, as_point, point_of, point_text, points_of, value_text, varying
from harness.report.text import one_line

BAD: Final = (Standing.FAIL, Standing.ERROR)
"""What makes a point one of which nobody can say that the release works there."""

_NAMED: Final = 3
_FEW: Final = 2


def exit_code(one: Qualification) -> int:
    """The exit code that a qualification calls for.

    That of its worst failure; else 130 when cells are left or it was interrupted, 2 when nothing was run, else 0.
    """
    bad = [cell.result.failure_class for cell in one.cells if cell.standing in BAD]
    if bad:
        return worst_exit_code([found or FailureClass.EXPECTATION for found in bad])
    if not one.complete:
        return INTERRUPTED
    return 0 if one.cells else FailureClass.CONFIGURATION.exit_code


def totals(cells: Iterable[QualifiedCell]) -> dict[Standing, int]:
    """How many cells have each standing."""
    found = Counter(cell.standing for cell in cells)
    return {standing: found[standing] for standing in Standing}


def counts_text(one: Qualification) -> str:
    """``36 passed, 1 failed, 1 error, 2 known failures, 12 not run``; what there is none of is left out."""
    number = totals(one.cells)
    parts = [
        (number[Standing.PASS], "passed", "passed"),
        (number[Standing.FAIL], "failed", "failed"),
        (number[Standing.ERROR], "error", "errors"),
        (number[Standing.KNOWN], "known failure", "known failures"),
        (sum(item.points for item in one.not_run), "not run", "not run"),
        (max(one.planned - len(one.cells), 0), "left to run", "left to run"),
    ]
    return ", ".join(f"{count} {name if count == 1 else names}" for count, name, names in parts if count) or "nothing"


def what_changed(change: Comparison) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The lists of a comparison with their titles, in the order of their weight; each may be empty."""
    return (
        ("newly failing", change.newly_failing),
        ("newly passing", change.newly_passing),
        ("slower", tuple(f"{one.name}: {one.before:.1f} s, now {one.now:.1f} s" for one in change.slower)),
        ("no longer run", change.gone),
        ("new", change.new),
    )


def sentence(one: Qualification) -> str:
    """The verdict in a sentence or two, as plain text in one line.

    ``Works on 37 of 38 points. Fails on kernel 6.1 with virtio-iommu: 2 scenarios (dma/a, dma/b).``
    """
    return one_line(" ".join(_sentences(one)))


def _sentences(one: Qualification) -> Iterable[str]:
    if not one.cells:
        yield "Nothing was run."
        return
    if one.interrupted:
        number = len(one.cells)
        yield f"Not finished: interrupted after {number} cell{'s' * (number != 1)}."
    elif not one.complete:
        yield f"Not finished: {len(one.cells)} of {one.planned} cells have been run."
    axes = varying(one.axes)
    points = [point for point in points_of(one) if any(point_of(cell, axes) == point for cell in one.cells)]
    bad = [cell for cell in one.cells if cell.standing in BAD]
    known = [cell for cell in one.cells if cell.standing is Standing.KNOWN]
    failing = _at(points, [*bad, *known], axes)
    so_far = "" if one.complete else " so far"
    where = _everywhere(one)
    if len(points) > 1:
        good = len(points) - len(failing)
        ever = f"all {len(points)}" if not failing else f"{good} of {len(points)}"
        yield f"Works on {ever} points{so_far}{where}."
    elif passed := [] if bad else [cell for cell in one.cells if cell.standing is Standing.PASS]:
        yield f"Works{so_far}{where}: {_scenarios(passed)} pass{'es' * (_number(passed) == 1)}."
    failed = [cell for cell in bad if cell.standing is Standing.FAIL]
    if failed:
        yield from _failures(one, failed, _at(points, failed, axes), points, where)
    errors = [cell for cell in bad if cell.standing is Standing.ERROR]
    if errors:
        yield _not_judged(errors, _at(points, errors, axes), points)
    yield from _not_run(one)
    if known:
        yield from _failures(one, known, _at(points, known, axes), points, where, "Known to fail")


def _at(points: list[Point], cells: list[QualifiedCell], axes: tuple[str, ...]) -> list[Point]:
    """The points that some cells are at."""
    found = {point_of(cell, axes) for cell in cells}
    return [point for point in points if point in found]


def _not_judged(errors: list[QualifiedCell], at: list[Point], points: list[Point]) -> str:
    """``Not judged on kernel 6.1: 2 errors of class boot (dma/a, dma/b).``: of these nobody knows whether they work."""
    classes = Counter(str(cell.result.failure_class or "infrastructure") for cell in errors)
    what = ", ".join(f"{number} error{'s' * (number != 1)} of class {name}" for name, number in classes.items())
    what += f" ({_some(list(dict.fromkeys(cell.scenario for cell in errors)))})"
    if len(points) == 1:
        return f"Not judged: {what}."
    if place := _place(at, points, "any"):
        return f"Not judged on {place}: {what}."
    if len(at) <= _FEW:
        return f"Not judged on {'; '.join(point_text(point) for point in at)}: {what}."
    return f"Not judged on {len(at)} of them: {what}."


def _not_run(one: Qualification) -> Iterable[str]:
    """A sentence for each axis that has values with no cell at all, while nothing is left to be run."""
    if not one.complete:
        return
    for axis, values in one.axes.items():
        ran = {cell.point[axis] for cell in one.cells if axis in cell.point}
        missing = [value for value in values if value not in ran]
        if not missing:
            continue
        about = [item for item in one.not_run if item.point.get(axis) in missing] or [
            item for item in one.not_run if axis not in item.point
        ]
        reasons = list(dict.fromkeys(item.reason for item in about))
        why = f" ({reasons[0]})" if len(reasons) == 1 else f" ({len(reasons)} reasons)" if reasons else ""
        names = [value_text(axis, value) for value in missing]
        yield f"Nothing was run on {' or '.join(filter(None, (', '.join(names[:-1]), names[-1])))}{why}."


def _failures(
    one: Qualification,
    bad: list[QualifiedCell],
    failing: list[Point],
    points: list[Point],
    where: str,
    verb: str = "Fails",
) -> Iterable[str]:
    names = list(dict.fromkeys(cell.scenario for cell in bad))
    of_all = f" of {_number(one.cells)}" if len(points) == 1 else ""
    what = f"{len(names)}{of_all} scenario{'s' * (len(names) != 1 or bool(of_all))} ({_some(names)})"
    if len(points) == 1:
        yield f"{verb}{where}: {what}."
    elif place := _place(failing, points, "each"):
        yield f"{verb} on {place}: {what}."
    elif len(bad) <= _FEW:
        axes = varying(one.axes)
        shown = "; ".join(f"{cell.scenario} on {point_text(point_of(cell, axes))}" for cell in bad)
        yield f"{verb}: {shown}."
    else:
        yield f"{verb} on {len(failing)} of them: {what}."


def _place(at: list[Point], points: list[Point], every: str) -> str:
    """All of the points, or what those at which something is have in common; empty when that is nothing."""
    return f"{every} of them" if len(at) == len(points) else _common(at, points)


def _common(failing: list[Point], points: list[Point]) -> str:
    """The fewest values, one or two, that all failing points have and no other one does; empty when there are none."""
    shared = set(failing[0]).intersection(*(set(point) for point in failing))
    ordered = [pair for pair in failing[0] if pair in shared]
    for number in (1, 2):
        for chosen in itertools.combinations(ordered, number):
            if [point for point in points if set(chosen) <= set(point)] == failing:
                return " with ".join(value_text(axis, value) for axis, value in chosen)
    return ""


def _everywhere(one: Qualification) -> str:
    """`` with QEMU 11.1, kernel 6.12``: what all cells have in common, of the axes that tell something."""
    values = {axis: {cell.point[axis] for cell in one.cells if axis in cell.point} for axis in ("qemu", "kernel")}
    told = {axis: found.pop() for axis, found in values.items() if len(found) == 1}
    return f" with {point_text(as_point(told))}" if told else ""


def _number(cells: Iterable[QualifiedCell]) -> int:
    return len({cell.scenario for cell in cells})


def _scenarios(cells: Iterable[QualifiedCell]) -> str:
    number = _number(cells)
    return f"{number} scenario{'s' * (number != 1)}"


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
