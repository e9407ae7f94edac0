"""What is said about a scenario that has mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigurationError
from harness.scenario import Problem, ScenarioError, parse_scenario

HEAD = """\
title: t
source: s
machine: {devices: {edu0: {model: edu, at: "02:00.0"}}}
"""  # steps begin in line 5
FILE = Path("case.yaml")


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, FILE)
    assert isinstance(caught.value, ConfigurationError)
    return list(caught.value.problems)


def said(text: str) -> list[str]:
    found = problems_of(text)
    assert all(problem.file == FILE for problem in found)
    return [f"{problem.line}:{problem.column} {problem.message}" for problem in found]
