"""What of a qualification has been done and is unchanged, and why the rest has to be run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.errors import FailureClass
from harness.qualified.database import Last, Planned, Store
from harness.qualify.fingerprint import changes
from harness.results import Outcome

RETRIED: Final = (FailureClass.INFRASTRUCTURE, FailureClass.BOOT)
"""The classes that say nothing about the scenario: they are tried again. Others never are."""


@dataclass(frozen=True, slots=True)
class Left:
    """What there is to do.

    Args:
        again: positions of the cells to be run.
        kept: how many are done and unchanged.
        reasons: why cells are run although there is a result, and how many for each reason.
    """

    again: tuple[int, ...]
    kept: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)


def what_is_left(
    planned: Sequence[Planned], last: Mapping[str, Last], wanted: Collection[int], *, forced: bool = False
) -> Left:
    """Which cells have to be run.

    Args:
        planned: all cells.
        last: the last attempt at each, by name.
        wanted: positions of those that are asked for.
        forced: run them although they are done.
    """
    again, reasons = [], Counter[str]()
    for index, cell in enumerate(planned):
        if index not in wanted:
            continue
        was = last.get(cell.name)
        reason = None if was is None else "asked for" if forced else _reason(cell, was)
        if was is None or reason is not None:
            again.append(index)
        if reason is not None:
            reasons[reason] += 1
    return Left(tuple(again), len(wanted) - len(again), dict(reasons))


def with_asked(
    store: Store, facts: Mapping[str, Any], asked: Sequence[Planned]
) -> tuple[dict[str, Any], tuple[Planned, ...]]:
    """What there is to run, where only some cells are asked for: the others stay as they were, with their results.

    So a finished qualification stays one when harness, a scenario or the matrix has changed since and one cell of it
    is run again.

    Args:
        store: what was planned before.
        facts: of the qualification as it would be planned now.
        asked: the cells that are asked for, as they would be planned now.

    Returns:
        Facts and cells for :meth:`harness.qualified.database.Store.plan`.
    """
    cells = {cell.name: cell for cell in (*store.planned, *asked)}
    axes = {axis: list(values) for axis, values in store.facts.get("axes", {}).items()}
    for cell in asked:
        for axis, value in cell.point.items():
            values = axes.setdefault(axis, [])
            if value not in values:
                values.append(value)
    return {"axes": axes, "known": facts["known"], "day": facts["day"]}, tuple(cells.values())


def _reason(cell: Planned, was: Last) -> str | None:
    """Why a cell that has a result is run again; None when it need not be."""
    if was.fingerprint != cell.fingerprint:
        return "; ".join(changes(was.made_of, cell.made_of)) or "what it depends on changed"
    if was.outcome == Outcome.ERROR and was.failure_class in RETRIED:
        return f"the last attempt ended with an error of class {was.failure_class}"
    return None
