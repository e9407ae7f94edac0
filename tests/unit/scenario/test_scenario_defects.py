"""The list of what Intel's library does otherwise, against the scenarios that show it and the page that explains it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.paths import scenarios_dir
from harness.scenario import Scenario, find_scenarios, load_scenario
from harness.scenario.defects import DEFECTS, OTHER

PAGE = Path(__file__).parents[3] / "docs" / "libusdm-findings.md"
LOADED = [load_scenario(file) for file in find_scenarios([scenarios_dir()])]
SCENARIOS = [one for one in LOADED if isinstance(one, Scenario)]


def named(scenario: Scenario) -> set[str]:
    """The ids that a scenario's ``libusdm`` blocks name."""
    steps = [one for step in scenario.steps for one in (step, *getattr(step.args, "steps", ()))]
    known = [step.libusdm for step in steps if step.libusdm is not None]
    whole = scenario.expect.libusdm
    return {one.defect for one in known} | ({whole.defect} if whole is not None else set())


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_has_a_scenario_that_shows_it(defect: str) -> None:
    shown_by = [scenario.id for scenario in SCENARIOS if defect in named(scenario)]
    assert shown_by, f"no scenario's libusdm block names {defect}"


def test_nothing_else_is_named() -> None:
    assert {one for scenario in SCENARIOS for one in named(scenario)} <= {*DEFECTS, *OTHER}


def test_a_scenario_that_only_usdm_runs_says_nothing_of_the_library() -> None:
    only = [scenario for scenario in SCENARIOS if scenario.needs.implementation == "usdm"]
    assert only
    assert all(not named(scenario) for scenario in only), "nothing would ever judge it"


def test_the_page_explains_each() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = set(re.findall(r"\b([ADFHLNV]\d{1,2})\b", text))
    assert set(DEFECTS) <= told
