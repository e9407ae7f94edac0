"""Scenario files: their models, their loading with ``file:line:column``, and their JSON Schema."""

from __future__ import annotations

from harness.scenario.args import Args
from harness.scenario.bare import BareScenario
from harness.scenario.bare_steps import BARE_KINDS, BareStep
from harness.scenario.expect import FaultExpect, ScenarioExpect, StepExpect
from harness.scenario.lint import lint
from harness.scenario.load import find_scenarios, load_scenario, parse_scenario
from harness.scenario.machine import Device, Machine, Needs
from harness.scenario.model import Scenario
from harness.scenario.problems import Problem, ScenarioError
from harness.scenario.steps import KINDS, Step, expect_keys

__all__ = [
    "BARE_KINDS",
    "KINDS",
    "Args",
    "BareScenario",
    "BareStep",
    "Device",
    "FaultExpect",
    "Machine",
    "Needs",
    "Problem",
    "Scenario",
    "ScenarioError",
    "ScenarioExpect",
    "Step",
    "StepExpect",
    "expect_keys",
    "find_scenarios",
    "lint",
    "load_scenario",
    "parse_scenario",
]
