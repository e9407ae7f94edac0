"""What a test in Python does in its guests: each step checked, done and noted, and all judged as a scenario is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

import harness
from harness.errors import ConfigurationError, HarnessError
from harness.fault import evidence_faults
from harness.judge.steps import check_steps
from harness.plugin.failure import Shown, is_about_faults, step_of_fault
from harness.plugin.points import TestPoint
from harness.plugin.state import State, say
from harness.plugin.steps import StepFailed, StepResult
from harness.report.json_report import write_cell
from harness.results import CellResult, Check, Evidence, FaultRecord, Outcome, StepEvidence
from harness.run.cell import cell_result, side_folder
from harness.run.cells import Cell
from harness.run.resources import Resources
from harness.run.session import GuestSession
from harness.scenario import Problem, Scenario, Step
from harness.scenario.growing import Growing

_OWN: Final = str(Path(harness.__file__).parent) + os.sep


class LiveTest:
    """The guests of a test, one for each side, and what became of them.

    Args:
        state: the session's.
        cell: the test as a cell, whose scenario has no step yet.
        resources: what it needs.
        data: the scenario as a file would hold it, without steps.
        point: where it runs.
        place: ``file:line`` of the test.
        rerun: the command that runs the test again.
        folder: a folder for its evidence, which is made.

    Attributes:
        sessions: its guests.
        interrupted: nothing can be asked of the guests any more: what was asked last has not been answered.
    """

    def __init__(
        self,
        state: State,
        cell: Cell,
        resources: Resources,
        data: Mapping[str, Any],
        point: TestPoint,
        place: str,
        rerun: str,
        folder: Path,
    ) -> None:
        assert isinstance(cell.scenario, Scenario)  # noqa: S101 - made so
        self.sessions: list[GuestSession] = []
        self.interrupted = False
        self._cell = cell
        self._scenario = cell.scenario
        self._resources = resources
        self._folder = folder
        self._options = state.settings.run
        self._point = point
        self._place = place
        self._rerun = rerun
        self._began = time.monotonic()
        self._growing = Growing(data, cell.scenario.file)
        self._steps: list[Step] = []
        self._places: list[str] = []
        self._names: set[str] = set()
        self._expect: dict[str, list[Any]] = {"faults": [], "kernel_log": []}
        self._fault_places: list[str] = []
        self._judged = -1
        self._result: CellResult | None = None
        self._guests = ExitStack()

    @property
    def scenario(self) -> Scenario:
        """The scenario, with the machine that the guests have."""
        return self._scenario

    @property
    def folder(self) -> Path:
        """Where the evidence is."""
        return self._folder

    def start(self) -> None:
        """Start the guests.

        Raises:
            HarnessError: whatever can go wrong with a guest.
        """
        self._folder.mkdir(parents=True)
        for side in self._cell.sides:
            session = GuestSession(
                *(self._cell, side, self._resources, self._options),
                *(side_folder(self._cell, side, self._folder), lambda stage: None, say),
            )
            self.sessions.append(session)
            self._guests.enter_context(session.running())

    def stop(self) -> None:
        """End the guests."""
        self._guests.close()

    # ---- steps

    def do(self, raw: Mapping[str, Any]) -> StepResult:
        """Do the next step on every side, and check it.

        Args:
            raw: the step as it stands in a file.

        Raises:
            ConfigurationError: it cannot be meant so; nothing was done.
            StepFailed: it did not do what is expected of it.
            HarnessError: whatever can go wrong with a guest.
        """
        __tracebackhide__ = True
        step, problems = self._growing.step(raw)
        if step is None or problems:
            raise ConfigurationError(_listed(problems))
        self._steps.append(step)
        self._places.append(caller())
        self._names |= {str(raw[step.kind][key]) for key in ("as", "name") if key in raw[step.kind]}
        self.interrupted = True
        seen = [session.do(step) for session in self.sessions]
        self.interrupted = False
        for session, one in zip(self.sessions, seen, strict=True):
            self._check(session, step, one)
        return self._step_result(step, seen)

    def new_name(self, kind: str) -> str:
        """A name for what a step of this kind makes."""
        number = 1
        while f"{kind}{number}" in self._names:
            number += 1
        return f"{kind}{number}"

    def _check(self, session: GuestSession, step: Step, seen: StepEvidence) -> None:
        __tracebackhide__ = True
        oracle = session.evidence_oracle
        # By itself, so that a loop of thousands of steps is judged once and not for each of them.
        alone = seen.model_copy(update={"index": 0})
        for check in check_steps([step], [alone], oracle):
            if not check.passed:
                on = f" on {session.side}" if len(self.sessions) > 1 else ""
                inner = check.name.removeprefix("step 0")
                raise StepFailed(f"step {seen.index}{inner}{on}: {check.message}")

    def _step_result(self, step: Step, seen: list[StepEvidence]) -> StepResult:
        first = seen[0]
        return StepResult(
            kind=step.kind,
            name=str(first.args.get("as") or first.args.get("name") or ""),
            returns=first.returns,
            error=first.error,
            values=first.values,
            faults=tuple(fault for fault in self.faults if fault.step == first.index) if first.trace else (),
            evidence=first,
            reference=seen[1] if len(seen) > 1 else None,
        )

    # ---- what is expected of the whole

    @property
    def faults(self) -> tuple[FaultRecord, ...]:
        """Every fault so far, as QEMU's trace of the first guest has it."""
        first = self.sessions[0]
        first.catch_up()
        addresses = self._scenario.machine.addresses
        return evidence_faults(Evidence(steps=tuple(first.steps), trace=first.trace, devices=addresses))

    def expect_fault(self, raw: Mapping[str, Any]) -> None:
        """Expect a fault.

        Raises:
            ConfigurationError: it cannot be meant so.
        """
        __tracebackhide__ = True
        problems = self._growing.fault(raw)
        if problems:
            raise ConfigurationError(_listed(problems))
        self._expect["faults"].append(raw)
        self._fault_places.append(caller())

    def expect_log(self, pattern: str) -> None:
        """Expect a line of the kernel's log."""
        self._expect["kernel_log"].append(pattern)

    # ---- the end

    @property
    def changed(self) -> bool:
        """Whether something was done since it was judged."""
        return self._judged != len(self._steps)

    def finish(self, failure: str = "") -> CellResult:
        """Gather the evidence and judge it, and write it down.

        Args:
            failure: what the test itself says went wrong; empty for nothing.

        Raises:
            ConfigurationError: what the test expects cannot be meant so.
        """
        self._judged = len(self._steps)
        scenario, problems = self._growing.end({key: tuple(one) for key, one in self._expect.items() if one})
        for session in self.sessions:
            if session.error is None and not self.interrupted:
                with session.noted():
                    session.end()
        more = [Check(name="test", passed=False, message=failure)] if failure else []
        done = self._scenario if scenario is None else scenario.located(self._scenario.id, self._scenario.file)
        done = done.model_copy(update={"machine": self._scenario.machine, "steps": tuple(self._steps)})
        self._result = cell_result(
            replace(self._cell, scenario=done),
            done,
            self._resources,
            self.sessions,
            self._folder,
            lambda stage: None,
            time.monotonic() - self._began,
            more,
        ).model_copy(update={"rerun": self._rerun})
        write_cell(self._result, self._folder)
        if scenario is None or problems:
            raise ConfigurationError(f"{self._fault_place()}: {_listed(problems)}")
        return self._result

    def shown(self) -> Shown | None:
        """The result as pytest shows it; None before there is one."""
        if self._result is None:
            return None
        return Shown(self._result, self._place_of, self._rerun, self._point.values)

    def passed(self) -> bool:
        """Whether the last judgement was good."""
        return self._result is not None and self._result.outcome is Outcome.PASS

    def _place_of(self, check: Check) -> str:
        about_faults = is_about_faults(check)
        step = step_of_fault(check) if about_faults else check.step
        if step is not None and step < len(self._places):
            return self._places[step]
        return self._fault_place() if about_faults else self._place

    def _fault_place(self) -> str:
        return self._fault_places[0] if self._fault_places else self._place


LIVE: Final = pytest.StashKey[LiveTest]()
"""On an item: its guests."""


def failure_of(error: BaseException) -> str:
    """What a test's own exception says, in one line; nothing of what the judge says by himself."""
    if isinstance(error, HarnessError):
        return error.message
    if isinstance(error, StepFailed):
        return ""  # the judge says the same
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def caller() -> str:
    """``file:line`` of the code that called the plugin."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return f"{os.path.relpath(frame.f_code.co_filename)}:{frame.f_lineno}"


def _listed(problems: list[Problem]) -> str:
    return "; ".join(one.message + (f" (hint: {one.hint})" if one.hint else "") for one in problems)
