"""A scenario whose steps come one at a time, as those of a test in Python do, and are checked as they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from harness.scenario.crosscheck import CrossCheck
from harness.scenario.explain import explain
from harness.scenario.model import Scenario
from harness.scenario.problems import Problem
from harness.scenario.steps import Step
from harness.scenario.yaml_marks import Document

ANY_STEP: Final = {"buffer": {"as": "a", "size": 4096}}
"""A scenario must have a step; this one asks for nothing."""


class Growing:
    """A scenario without its steps yet.

    Args:
        data: what a file of it would hold, with tuples for lists and without steps.
        file: its name, for the problems.
    """

    def __init__(self, data: Mapping[str, Any], file: Path) -> None:
        self._data = dict(data)
        self._file = file
        self._steps: list[Mapping[str, Any]] = []
        self._marks = Document()
        self._check = CrossCheck(self._marks, file, others=True)
        self._names = self._check.begin(self._data)

    def step(self, raw: Mapping[str, Any]) -> tuple[Step | None, list[Problem]]:
        """The next step, and what is wrong with it.

        Args:
            raw: the step as it stands in a file, with tuples for lists.
        """
        scenario, problems = self._valid({"steps": (raw,)})
        if scenario is None:
            return None, problems
        before = len(self._check.problems)
        self._check.steps((raw,), ("steps",), self._names, first=len(self._steps))
        self._steps.append(raw)
        return scenario.steps[0], self._check.problems[before:]

    def fault(self, raw: Mapping[str, Any]) -> list[Problem]:
        """What is wrong with an expected fault by itself: whether its names are known is asked in the end.

        Args:
            raw: the fault as it stands in ``expect.faults``.
        """
        return self._valid({"steps": (ANY_STEP,), "expect": {"faults": (raw,)}})[1]

    def end(self, expect: Mapping[str, Any]) -> tuple[Scenario | None, list[Problem]]:
        """The scenario, and what is wrong when no more steps come.

        Args:
            expect: what is expected of the whole, as it stands in a file.
        """
        steps = tuple(self._steps)
        scenario, problems = self._valid({"steps": steps or (ANY_STEP,), "expect": dict(expect)})
        if scenario is None:
            return None, problems
        before = len(self._check.problems)
        self._check.end({"expect": expect}, self._names)
        return scenario if steps else scenario.model_copy(update={"steps": ()}), self._check.problems[before:]

    def _valid(self, more: Mapping[str, Any]) -> tuple[Scenario | None, list[Problem]]:
        document = Document({**self._data, **more})
        try:
            return Scenario.model_validate(document.data), []
        except ValidationError as error:
            return None, list(explain(document, self._file, error))
