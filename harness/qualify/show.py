"""What a matrix comes to as plain lines or JSON, and what to do when it has been run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from harness.qualified.records import NotRun
from harness.qualify.plan import Plan
from harness.qualify.run import Done, Prepared
from harness.report.points import by_reason

# What a command that goes on has anew, or must not have: what it runs is all that is left.
_WITH_VALUE: Final = ("--out", "-k", "--filter", "--cell")
_WITHOUT: Final = ("--resume", "--rebuild")
_JOINED: Final = ("--out=", "-k", "--filter=", "--cell=")


def plan_lines(prepared: Prepared, jobs: int) -> Iterator[str]:
    """The cells, and what is not run and why."""
    plan = prepared.plan
    for index in prepared.wanted:
        yield plan.items[index].cell.name
    if len(prepared.wanted) == len(plan.items):
        yield from _not_run(plan.not_run)
    minutes = prepared.seconds(prepared.wanted, jobs) / 60
    templates = len(prepared.grouped(prepared.wanted))
    yield ""
    yield (
        f"{prepared.matrix.title}: {len(prepared.wanted)} of {len(plan.items)} cell{'s' * (len(plan.items) != 1)}, "
        f"{plan.points} point{'s' * (plan.points != 1)}, {templates} template{'s' * (templates != 1)}, "
        f"about {minutes:.1f} min with {jobs} at once"
    )
    yield from (f"note: {note}" for note in plan.notes)


def plan_json(prepared: Prepared) -> str:
    """The same for programs."""
    plan: Plan = prepared.plan
    cells = [
        {
            "name": item.cell.name,
            "scenario": item.cell.scenario.id,
            "point": dict(item.point),
            "labels": dict(item.labels),
        }
        for item in (plan.items[index] for index in prepared.wanted)
    ]
    document = {
        "title": prepared.matrix.title,
        "cells": cells,
        "not_run": [one.model_dump() for one in plan.not_run],
        "notes": plan.notes,
    }
    return json.dumps(document)


def next_lines(done: Done) -> Iterator[str]:
    """What to do next."""
    one = done.qualification
    if done.left:
        yield f"not waited for, because they did not stop at once: {', '.join(done.left)}"
    if not one.complete:
        yield f"go on:   {go_on(one.argv, one.matrix, done.folder)}"
    yield f"report:  {shlex.join(['harness', 'report', str(done.folder)])}"


def go_on(argv: Sequence[str], matrix: str, folder: Path) -> str:
    """The command that goes on with a qualification as it was started: on the same ``usdm``, where its cells ran.

    Args:
        argv: the command line of its last start.
        matrix: the matrix file, which is named where no command line is known.
        folder: the qualification's folder.
    """
    words = ["harness", *argv[1:]] if "qualify" in argv[1:] else ["harness", "qualify", matrix]
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _WITH_VALUE:
            skip = True
        elif word not in _WITHOUT and not word.startswith(_JOINED):
            kept.append(word)
    return shlex.join([*kept, "--out", str(folder), "--resume"])


def _not_run(entries: Iterable[NotRun]) -> Iterator[str]:
    reasons = by_reason(entries)
    if reasons:
        yield ""
        yield "not run:"
    for reason in reasons:
        names = dict.fromkeys(one.scenario for one in reason.entries)
        yield f"  {reason.text}: {reason.points} point{'s' * (reason.points != 1)}, {', '.join(names)}"
