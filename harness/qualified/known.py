"""Failures held against the known ones: which are excused, which are not any more, and which entries are stale."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from harness.qualified.fits import fits_pattern, fits_point
from harness.qualified.records import KnownFailure
from harness.results import CellResult, Outcome

_BAD = (Outcome.FAIL, Outcome.ERROR)


def means(entry: KnownFailure, scenario: str, point: Mapping[str, str]) -> bool:
    """Whether an entry is about a scenario on a point, whatever its result."""
    return fits_pattern((entry.scenario,), scenario) and fits_point(entry.when, point)


def shows(entry: KnownFailure, result: CellResult) -> bool:
    """Whether a result fails as the entry says, and in no other way: every check that failed must match.

    A failed expectation is shown by an entry without a class, an error by one that names its class.
    """
    if result.outcome not in _BAD or entry.failure_class != _error_class(result):
        return False
    checks = () if result.verdict is None else result.verdict.checks
    texts = [f"{check.name}: {check.message}" for check in checks if not check.passed]
    if not texts or result.outcome is Outcome.ERROR:
        texts.append(result.message)
    return all(re.search(entry.signature, text) for text in texts)


def _error_class(result: CellResult) -> str:
    return str(result.failure_class) if result.outcome is Outcome.ERROR else ""


def excused(
    entries: Sequence[KnownFailure], scenario: str, point: Mapping[str, str], result: CellResult, day: date
) -> tuple[KnownFailure | None, str]:
    """The entry that excuses a result, and what a reader should know where one nearly does.

    Args:
        entries: all known failures.
        scenario: id of the result's scenario.
        point: axis to value, of every axis.
        result: the result.
        day: the date that entries must not have passed.
    """
    if result.outcome not in _BAD:
        return None, ""
    near = [entry for entry in entries if means(entry, scenario, point)]
    like = [entry for entry in near if shows(entry, result)]
    for entry in like:
        if entry.until >= day:
            return entry, ""
    if like:
        return None, f"known until {like[0].until} and not any more: {like[0].reason} ({like[0].place})"
    if near:
        return None, f"fails otherwise than known: {_otherwise(near[0], result)} ({near[0].place})"
    return None, ""


def _otherwise(entry: KnownFailure, result: CellResult) -> str:
    if entry.failure_class == _error_class(result):
        return f"{entry.signature!r} is not in all of it"
    return f"known is {f'an error of class {entry.failure_class}' if entry.failure_class else 'a failed expectation'}"


def stale(
    entries: Iterable[KnownFailure], cells: Sequence[tuple[str, Mapping[str, str], CellResult]]
) -> tuple[KnownFailure, ...]:
    """The entries that no cell showed although some could have.

    Args:
        entries: all known failures.
        cells: scenario, point and result of each cell that was run.
    """
    found = []
    for entry in entries:
        about = [result for scenario, point, result in cells if means(entry, scenario, point)]
        if about and not any(shows(entry, result) for result in about):
            found.append(entry)
    return tuple(found)
