"""What docs/bare-tier.md names is there, and its example is a scenario."""

from __future__ import annotations

import re
from pathlib import Path

from harness.paths import scenarios_dir
from harness.scenario import BareScenario, parse_scenario

TEXT = (Path(__file__).parents[3] / "docs" / "bare-tier.md").read_text()


def section(title: str) -> str:
    return TEXT.split(f"\n{title}\n")[1].split("\n## ")[0]


def test_the_example_is_a_scenario() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert isinstance(parse_scenario(example, Path("example.yaml")), BareScenario)


def test_every_scenario_that_is_named_is_there() -> None:
    tables = section("## Fault reasons")
    for name in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", tables):
        assert (scenarios_dir() / "bare" / f"{name}.yaml").is_file(), name
