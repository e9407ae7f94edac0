"""In which order cells are started: those of one template one after the other, and templates made ahead."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

from harness.machine.spec import MachineSpec
from harness.qualify.plan import Item
from harness.run.cells import machine_spec
from harness.run.durations import key
from harness.run.jobs import StartKind
from harness.run.resources import Resources
from harness.scenario import BareScenario

Group = tuple[str, str, str, MachineSpec] | None
"""What guests have in common that can be cloned from one template; None without a guest."""

# What a cell and a template take where nobody knows: seconds of one job under TCG.
CELL_SECONDS: Final = 2.0
BARE_SECONDS: Final = 0.2
TEMPLATE_SECONDS: Final = 9.0


def group_of(item: Item, resources: Resources) -> Group:
    """The template of a cell's guests, as far as cells need be told apart."""
    cell = item.cell
    if isinstance(cell.scenario, BareScenario):
        return None
    return cell.qemu, cell.kernel, resources.payload.key, machine_spec(cell.scenario).frozen


def groups(items: Sequence[Item], indices: Sequence[int], resources: Resources) -> dict[Group, list[int]]:
    """Indices by their template, in the order in which they come."""
    found: dict[Group, list[int]] = {}
    for index in indices:
        found.setdefault(group_of(items[index], resources), []).append(index)
    return found


def order(
    items: Sequence[Item], grouped: Mapping[Group, Sequence[int]], start: StartKind, known: Mapping[str, float]
) -> list[int]:
    """The indices in the order to start them in.

    The first cell of a template makes it, and the others wait for it. So the first one of the next template is started
    before the rest of this one: one job makes a template while the others run clones. Cells without a guest come last,
    they fill the gaps.

    Args:
        items: all cells.
        grouped: the positions of those that are to be run, by :func:`groups`.
        start: how their guests are started.
        known: seconds by ``harness.run.durations.key``.
    """

    def seconds(index: int) -> float:
        return known.get(key(items[index].cell.scenario.id, start), math.inf)

    last = sorted(grouped.get(None, ()), key=lambda index: items[index].cell.qemu)
    # The largest first: at the end, when jobs run out of work, there should be little left to wait for.
    rows = [sorted(row, key=lambda index: -seconds(index)) for group, row in grouped.items() if group is not None]
    rows.sort(key=lambda row: -len(row))
    ordered = [row[0] for row in rows[:1]]
    for row, following in itertools.zip_longest(rows, rows[1:], fillvalue=()):
        ordered += [*following[:1], *row[1:]]
    return ordered + last


def estimate(
    items: Sequence[Item],
    grouped: Mapping[Group, Sequence[int]],
    start: StartKind,
    known: Mapping[str, float],
    jobs: int,
) -> float:
    """About how many seconds it will take, where every template has to be made.

    Args:
        items: all cells.
        grouped: as for :func:`order`.
        start: how their guests are started.
        known: as for :func:`order`.
        jobs: how many at once.
    """
    templates = len(grouped) - (None in grouped)
    cells = sum(
        known.get(key(items[index].cell.scenario.id, start), BARE_SECONDS if group is None else CELL_SECONDS)
        for group, row in grouped.items()
        for index in row
    )
    return (cells + templates * TEMPLATE_SECONDS) / jobs
