"""All files that a scenarios folder may hold, checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.scenario.load import find_all, load_scenario, other_kind
from harness.scenario.matrix_load import failures_problems, matrix_problems
from harness.scenario.problems import Problem, ScenarioError


def lint(paths: Iterable[Path | str]) -> list[Problem]:
    """Everything that is wrong with all scenarios, matrices and known failures that paths name; empty when nothing is.

    Args:
        paths: files and folders, as for `find_scenarios`.
    """
    found, problems = find_all(paths)
    for file in found:
        kind = other_kind(file)
        if kind is not None:
            problems += matrix_problems(file) if kind == "matrix" else failures_problems(file)
            continue
        try:
            load_scenario(file)
        except ScenarioError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))
