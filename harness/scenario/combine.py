"""The points of some axes: all of them, few that have every pair of values, or one change at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from harness.scenario.matrix import Combine

Point = dict[str, str]
"""Axis to value."""

Pair = tuple[tuple[str, str], tuple[str, str]]
"""Two axes, each with a value."""


def combine(
    axes: Mapping[str, Sequence[str]], how: Combine, allowed: Callable[[Point], bool] = lambda point: True
) -> list[Point]:
    """The points of axes, without those that are not allowed; the same ones whenever it is asked.

    Args:
        axes: axis to its values, at least one each.
        how: which combinations.
        allowed: whether a point may be.
    """
    match how:
        case "all":
            return [point for point in _product(axes) if allowed(point)]
        case "each":
            return [point for point in _each(axes) if allowed(point)]
        case "pairs":
            return _pairs(axes, allowed)


def _product(axes: Mapping[str, Sequence[str]]) -> Iterator[Point]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _each(axes: Mapping[str, Sequence[str]]) -> Iterator[Point]:
    first = {axis: values[0] for axis, values in axes.items()}
    yield first
    for axis, values in axes.items():
        for value in values[1:]:
            yield first | {axis: value}


def pairs_of(point: Mapping[str, str]) -> Iterator[Pair]:
    """The pairs of values that a point has."""
    yield from itertools.combinations(point.items(), 2)


def _pairs(axes: Mapping[str, Sequence[str]], allowed: Callable[[Point], bool]) -> list[Point]:
    """Points that have every pair that an allowed point has: each time the one with most pairs that are still missing.

    Of equals the first of the product is taken, so the first values, which are the usual ones, come first and often.
    """
    points = [point for point in _product(axes) if allowed(point)]
    if len(axes) < 2:
        return points
    having = [frozenset(pairs_of(point)) for point in points]
    missing = set().union(*having)
    chosen = []
    while missing:
        best = max(range(len(points)), key=lambda index: (len(having[index] & missing), -index))
        chosen.append(points[best])
        missing -= having[best]
    return chosen
