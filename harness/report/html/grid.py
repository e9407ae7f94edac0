"""Scenarios by points: the table in which every cell has a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from harness.qualified.records import NotRun, Qualification, QualifiedCell, Standing
from harness.report.html.detail import SYMBOLS, WORDS
from harness.report.points import TITLES, Point, point_of, point_text, points_of, varying
from harness.report.text import one_line

_WIDE: Final = 6
"""Up to so many points the columns are wide and their headings lie flat."""

_TILE: Final = 30
_LETTER: Final = 7.5


@dataclass(frozen=True, slots=True)
class Head:
    """A heading over some columns: its words, how many columns, whether it stands upright for want of room."""

    text: str
    span: int
    upright: bool


@dataclass(frozen=True, slots=True)
class Tile:
    """A place of the grid.

    Args:
        column: number of its point.
        kind: standing of its cell; ``skip`` where nothing was run and it is known why, empty where there is nothing.
        symbol: the standing as a character.
        label: for screen readers: scenario, point, standing.
        cell: number of the cell, or None.
        title: why it was not run; else empty.
    """

    column: int
    kind: str
    symbol: str
    label: str
    cell: int | None
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """A scenario: the end of its id, the whole, its title, its tiles; without a cell, why the first was not run."""

    name: str
    scenario: str
    title: str
    why: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A point: its values by axis, in words, and how many of its cells passed of how many."""

    values: Mapping[str, str]
    text: str
    good: int
    total: int


@dataclass(frozen=True, slots=True)
class Grid:
    """The table: headings of each axis that varies, columns, and lines by folder."""

    heads: tuple[tuple[str, tuple[Head, ...]], ...]
    columns: tuple[Column, ...]
    folders: tuple[tuple[str, tuple[Line, ...]], ...]
    wide: bool
    axes: Mapping[str, tuple[str, ...]]


def grid_of(one: Qualification) -> Grid:
    """The grid of a qualification; a cell is numbered by its place in it."""
    axes = varying(one.axes)
    points = points_of(one) or ((),)
    cells: dict[tuple[str, Point], list[int]] = {}
    for number, cell in enumerate(one.cells):
        cells.setdefault((cell.scenario, point_of(cell, axes)), []).append(number)
    points = _doubled(points, cells)
    wide = len(points) <= _WIDE
    known = dict.fromkeys(cell.scenario for cell in one.cells)
    known |= dict.fromkeys(item.scenario for item in one.not_run if not set("*?[") & set(item.scenario))
    folders: dict[str, list[Line]] = {}
    for scenario in sorted(known):
        tiles = [_tile(number, point, scenario, one, cells) for number, point in enumerate(points)]
        _mark_not_run(tiles, points, scenario, one.not_run)
        mine = [one.cells[tile.cell] for tile in tiles if tile.cell is not None]
        folder, _, name = one_line(scenario).rpartition("/")
        title = one_line(mine[0].result.title) if mine else ""
        why = next((tile.title for tile in tiles if tile.title), "")
        line = Line(name, one_line(scenario), title, why, tuple(tiles))
        folders.setdefault(folder, []).append(line)
    return Grid(
        heads=tuple((axis, _heads(axis, points, wide)) for axis in axes),
        columns=tuple(_column(number, point, folders) for number, point in enumerate(points)),
        folders=tuple((folder, tuple(lines)) for folder, lines in folders.items()),
        wide=wide,
        axes={
            axis: tuple(dict.fromkeys(dict(point)[axis] for point in points if axis in dict(point))) for axis in axes
        },
    )


def title_of(axis: str) -> str:
    """An axis as its heading has it."""
    return TITLES.get(axis, axis)


def _doubled(points: Sequence[Point], cells: dict[tuple[str, Point], list[int]]) -> tuple[Point, ...]:
    """The points, one again as often as a scenario has several cells there that no axis tells apart."""
    out: list[Point] = []
    for point in points:
        most = max((len(found) for (_, where), found in cells.items() if where == point), default=1)
        out += [point] * max(most, 1)
    return tuple(out)


def _tile(
    number: int, point: Point, scenario: str, one: Qualification, cells: dict[tuple[str, Point], list[int]]
) -> Tile:
    found = cells.get((scenario, point))
    where = f"{one_line(scenario)}{', ' * bool(point)}{point_text(point)}"
    if found:
        place = found.pop(0)
        cell = one.cells[place]
        standing = cell.standing
        return Tile(number, str(standing), SYMBOLS[standing], f"{where}: {WORDS[standing]}", place, "")
    return Tile(number, "", "", where, None, "")


def _mark_not_run(tiles: list[Tile], points: Sequence[Point], scenario: str, not_run: Sequence[NotRun]) -> None:
    """Mark the empty places of a scenario that are known not to have been run.

    One line may stand for several points, of which it has only what they share: it is believed of all the places that
    it can mean when these are no more than it stands for.
    """
    for item in not_run:
        if item.scenario != scenario and not fnmatchcase(scenario, item.scenario):
            continue
        meant = [tile for tile in tiles if not tile.kind and _is_at(item, points[tile.column])]
        if len(meant) <= item.points:
            reason = one_line(item.reason)
            for tile in meant:
                label = f"{tile.label}: not run, {reason}"
                tiles[tile.column] = Tile(tile.column, "skip", SYMBOLS[Standing.SKIP], label, None, reason)


def _is_at(item: NotRun, point: Point) -> bool:
    """Whether a line of what was not run can speak of a point."""
    return all(item.point.get(axis, value) == value for axis, value in point)


def _heads(axis: str, points: Sequence[Point], wide: bool) -> tuple[Head, ...]:
    """The headings of an axis, one for each run of columns that agree in it and in all axes before it."""
    found: list[tuple[Point, str, int]] = []
    for point in points:
        axes = [name for name, _ in point]
        before = point[: axes.index(axis)] if axis in axes else point
        text = one_line(dict(point).get(axis, "any"))
        if found and found[-1][:2] == (before, text):
            found[-1] = (before, text, found[-1][2] + 1)
        else:
            found.append((before, text, 1))
    return tuple(Head(text, span, not wide and len(text) * _LETTER > span * _TILE - 6) for _, text, span in found)


def _column(number: int, point: Point, folders: Mapping[str, Sequence[Line]]) -> Column:
    tiles = [line.tiles[number] for lines in folders.values() for line in lines if line.tiles[number].cell is not None]
    good = sum(tile.kind in (Standing.PASS, Standing.KNOWN) for tile in tiles)
    return Column(dict(point), point_text(point) or "all", good, len(tiles))


def failing_first(cells: Sequence[QualifiedCell]) -> list[int]:
    """Numbers of the cells that a reader must see: errors, failures, then known ones; in their order."""
    order = (Standing.ERROR, Standing.FAIL, Standing.KNOWN)
    return [number for standing in order for number, cell in enumerate(cells) if cell.standing is standing]
