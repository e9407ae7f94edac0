"""Two qualifications side by side: what fails that did not, what passes that did not, what takes longer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from harness.qualified.records import AXES, Comparison, Qualification, QualifiedCell, Slower, Standing

STAGE: Final = "steps"
"""The stage that is compared: the others are the harness' own, and a template's making hits whoever comes first."""

FLOOR: Final = 0.5
"""Seconds that a cell must have lost before it counts as slower, whatever the ratio: less is noise."""

_GOOD: Final = (Standing.PASS, Standing.KNOWN)

Key = tuple[str, tuple[tuple[str, str], ...]]


def compare(before: Qualification, now: Qualification, ratio: float = 1.5, folder: str = "") -> Comparison:
    """What changed from one qualification to a later one.

    Cells are matched by scenario and point. Axes that only one of the two has are left out of the point when that
    keeps every cell apart, so that a run and a matrix can be compared; else all cells that are one without those axes
    are compared with the one that the other has, as when a matrix gets an axis. Where both have several, names must be
    equal.

    Args:
        before: the earlier one.
        now: the later one.
        ratio: how many times as long a cell's steps may take, > 0.
        folder: the earlier one's folder, to be named.

    Returns:
        Names as ``now`` has them, of cells that are gone as ``before`` has them. While either of the two is not
        complete, cells that it lacks are not told: they were only not reached.
    """
    pairs = _pairs(before, now)
    olds, news = Counter(was.name for was, _ in pairs), Counter(cell.name for _, cell in pairs)
    failing: dict[str, None] = {}
    passing: dict[str, None] = {}
    slower = []
    for was, cell in pairs:
        good = was.standing in _GOOD, cell.standing in _GOOD
        if good == (True, False):
            failing[cell.name] = None
        elif good == (False, True):
            passing[cell.name] = None
        # Times of several points are no times of one.
        took = _slower(was, cell, ratio) if olds[was.name] == news[cell.name] == 1 else None
        if took is not None:
            slower.append(took)
    return Comparison(
        before=before.started,
        folder=folder,
        newly_failing=tuple(failing),
        newly_passing=tuple(passing),
        slower=tuple(sorted(slower, key=lambda one: one.before - one.now)),
        ratio=ratio,
        gone=tuple(cell.name for cell in before.cells if cell.name not in olds) if now.complete else (),
        new=tuple(cell.name for cell in now.cells if cell.name not in news) if before.complete else (),
    )


def _slower(was: QualifiedCell, cell: QualifiedCell, ratio: float) -> Slower | None:
    """A cell that passed both times, and whose steps took too long now; else None."""
    if was.standing is not Standing.PASS or cell.standing is not Standing.PASS:
        return None
    before, now = was.result.stages.get(STAGE), cell.result.stages.get(STAGE)
    if before is None or now is None or now <= before * ratio or now - before < FLOOR:
        return None
    return Slower(name=cell.name, before=before, now=now)


def _pairs(before: Qualification, now: Qualification) -> list[tuple[QualifiedCell, QualifiedCell]]:
    """The cells that are compared, earlier and later, in the later one's order."""
    common = [axis for axis in AXES if axis in before.axes and axis in now.axes]
    old, new = _by_axes(before, common), _by_axes(now, common)
    names = {cell.name: cell for cell in before.cells}
    pairs = []
    for cell in now.cells:
        key = _key(cell, common)
        was = old.get(key, [])
        if len(was) > 1 and len(new[key]) > 1:
            was = [names[cell.name]] if cell.name in names else []
        pairs += [(one, cell) for one in was]
    return pairs


def _by_axes(one: Qualification, axes: Sequence[str]) -> dict[Key, list[QualifiedCell]]:
    """The cells by what they are on some axes."""
    found: dict[Key, list[QualifiedCell]] = {}
    for cell in one.cells:
        found.setdefault(_key(cell, axes), []).append(cell)
    return found


def _key(cell: QualifiedCell, axes: Sequence[str]) -> Key:
    return cell.scenario, tuple((axis, cell.point[axis]) for axis in axes if axis in cell.point)
