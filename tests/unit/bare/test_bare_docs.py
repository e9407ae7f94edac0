"""The reference of the bare tier names what there is, and its example is a scenario."""

from __future__ import annotations

import re
from pathlib import Path

from harness.paths import scenarios_dir
from harness.scenario import BARE_KINDS, BareScenario, parse_scenario
from harness.scenario.bare_machine import BareDevice, BareMachine
from harness.scenario.bare_steps import BareExpect
from harness.scenario.bare_tables import ContextFields, Interrupts, IrteFields, Pages, Tables

TEXT = (Path(__file__).parents[3] / "docs" / "bare-tier.md").read_text()


def section(title: str) -> str:
    return TEXT.split(f"\n{title}\n")[1].split("\n## ")[0]


def test_the_example_is_a_scenario() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert isinstance(parse_scenario(example, Path("example.yaml")), BareScenario)


def test_every_kind_and_every_argument_is_named() -> None:
    steps = section("## steps")
    rows = {
        kind: row
        for row in steps.splitlines()
        for kind in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")
    }
    for kind, model in BARE_KINDS.items():
        assert kind in rows, kind
        if "keys of" not in rows[kind]:
            for name in model.model_fields:
                assert name in rows[kind], (kind, name)
    assert set(BareExpect.model_fields) <= set(re.findall(r"`(\w+)`", steps))


def test_every_key_is_named() -> None:
    for title, models in (
        ("## Top level", [BareScenario]),
        ("## machine", [BareMachine, BareDevice]),
        ("## tables", [Tables, Pages, ContextFields, Interrupts, IrteFields]),
    ):
        for model in models:
            for name in model.model_fields:
                assert re.search(rf"[`{{ ]{name}\b", section(title)), (title, name)


def test_every_scenario_that_is_named_is_there() -> None:
    tables = section("## Fault reasons")
    for name in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", tables):
        assert (scenarios_dir() / "bare" / f"{name}.yaml").is_file(), name
