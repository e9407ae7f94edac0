"""One cell from its scenario to its result: boot, steps, evidence, verdict."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import __version__
from harness.judge import judge, judge_both
from harness.machine.emulator import tail
from harness.results import CellResult, Check, Outcome, Versions
from harness.run.bare import run_bare
from harness.run.cells import Cell, unmet
from harness.run.options import RunOptions
from harness.run.outcome import errored, judged
from harness.run.resources import Resources
from harness.run.session import GuestSession, Side, Told, oracle
from harness.scenario import BareScenario, Scenario

BeforeEnd = Callable[[CellResult, Sequence[GuestSession]], None]
"""Told the result of a cell while its guests still run."""


def run_cell(
    cell: Cell,
    resources: Resources,
    options: RunOptions,
    folder: Path,
    stage: Told,
    say: Told,
    before_end: BeforeEnd | None = None,
) -> CellResult:
    """Run one cell. Never raises for what can go wrong with a guest: that is in the result.

    Args:
        cell: the scenario and its point of the matrix.
        resources: what was prepared for the run.
        options: deadlines.
        folder: the cell's run folder; made here. A cell that runs on usdm and its oracle has one for each in it.
        stage: told the name of each stage as it begins.
        say: told what else takes time: a template that has to be made.
        before_end: told the result while the guests still run, in which it may do what it likes; without it each guest
            ends as soon as its steps are done. Not called where no guest was started.
    """
    started = time.monotonic()
    scenario = cell.scenario
    common = cell_facts(cell)
    if isinstance(scenario, BareScenario):
        return run_bare(scenario, resources.emulations[cell.qemu], options, folder, stage, common)
    reason = unmet(cell, resources)
    if reason:
        return CellResult(**common, outcome=Outcome.SKIP, message=reason)
    folder.mkdir(parents=True)
    sessions: list[GuestSession] = []
    with ExitStack() as guests:
        for side in cell.sides:
            session = GuestSession(cell, side, resources, options, side_folder(cell, side, folder), stage, say)
            sessions.append(session)
            with session.noted(), ExitStack() as one:
                one.enter_context(session.running())
                for step in scenario.steps:
                    session.do(step)
                session.end()
                if before_end is not None:
                    # Entered anew: what goes wrong when it ends is after the result, and is nobody's.
                    guests.push(one.pop_all())
            if session.error is not None:
                break
        result = cell_result(cell, scenario, resources, sessions, folder, stage, time.monotonic() - started)
        if before_end is not None:
            before_end(result, sessions)
    return result


def cell_facts(cell: Cell) -> dict[str, Any]:
    """What a result says of its cell whatever becomes of it."""
    scenario = cell.scenario
    return {
        "scenario": cell.name,
        "title": scenario.title,
        "source": scenario.source,
        "file": str(scenario.file),
        "rerun": cell.rerun,
        "implementation": cell.implementation,
    }


def side_folder(cell: Cell, side: Side, folder: Path) -> Path:
    """The folder of one of a cell's guests, which is made."""
    where = folder / side if cell.implementation == "both" else folder
    where.mkdir(exist_ok=True)
    return where


def cell_result(
    cell: Cell,
    scenario: Scenario,
    resources: Resources,
    sessions: Sequence[GuestSession],
    folder: Path,
    stage: Told,
    seconds: float,
    more: Sequence[Check] = (),
) -> CellResult:
    """What a cell came to, judged where nothing went wrong with its guests.

    Args:
        cell: the cell.
        scenario: what was done and what had to be seen.
        resources: what was prepared for it.
        sessions: its guests, one for each side, fewer where an error ended one.
        folder: its run folder.
        stage: told that the judge begins.
        seconds: how long it took.
        more: what was checked besides.
    """
    evidence = [session.evidence() for session in sessions]
    last = sessions[-1]
    facts = cell_facts(cell) | {
        "evidence": evidence[0],
        "reference": evidence[1] if len(evidence) > 1 else None,
        "seconds": round(seconds, 3),
        "stages": _stages(sessions),
        "start": last.start,
        "folder": str(folder),
        "versions": _versions(cell, resources, last),
    }
    if last.error is not None:
        on = f"on {last.side}: " if cell.implementation == "both" else ""
        console = last.error.context.get("console", tail(last.folder / "console.log"))
        return errored(last.error, facts | {"console_tail": tuple(console.splitlines())}, on)
    stage("judge")
    verdict = judge(scenario, evidence[0]) if len(evidence) == 1 else judge_both(scenario, *evidence)
    if more:
        passed = verdict.passed and all(check.passed for check in more)
        verdict = verdict.model_copy(update={"passed": passed, "checks": (*verdict.checks, *more)})
    return judged(verdict, facts)


def _stages(sessions: Sequence[GuestSession]) -> dict[str, float]:
    """Seconds of each stage, summed over the guests."""
    total: dict[str, float] = {}
    for session in sessions:
        for name, seconds in session.stages.items():
            total[name] = total.get(name, 0.0) + seconds
    return {name: round(seconds, 3) for name, seconds in total.items()}


def _versions(cell: Cell, resources: Resources, session: GuestSession) -> Versions:
    emulation, image = resources.emulations[cell.qemu], resources.images[cell.kernel]
    return Versions(
        harness=__version__,
        python=platform.python_version(),
        qemu=emulation.build.version,
        qemu_build=f"{emulation.build.name} {emulation.build.key[:12]}",
        kernel=image.kernel_release,
        image=image.name,
        image_key=image.key,
        accelerator=emulation.accelerator.accelerator,
        accelerator_reason=emulation.accelerator.reason,
        payload=resources.payload.key,
        guest_python=session.guest_python,
        template=session.template,
        oracle=oracle(cell, resources),
    )
