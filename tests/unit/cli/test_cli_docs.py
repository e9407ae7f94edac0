"""What README and docs say is what there is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from harness.cli.handler import EXIT_CODES
from harness.scenario import KINDS, parse_scenario
from harness.scenario.expect import FaultExpect, ScenarioExpect, StepExpect
from harness.scenario.machine import Machine
from harness.scenario.model import Scenario

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
SCENARIOS = (ROOT / "docs" / "scenarios.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", SCENARIOS + README, re.DOTALL)


def section(title: str) -> str:
    return SCENARIOS.split(f"\n{title}\n")[1].split("\n## ")[0]


def first_column(text: str) -> list[str]:
    return re.findall(r"^\| `(\w+)`", text, re.MULTILINE)


@pytest.mark.parametrize("text", EXAMPLES, ids=[text.split("title: ")[1].split("\n")[0] for text in EXAMPLES])
def test_every_example_is_a_valid_scenario(text: str):
    assert parse_scenario(text, "example.yaml").steps


def test_every_error_that_the_examples_expect_exists():
    sources = [(ROOT / "usdm" / name).read_text() for name in ("errors.py", "dma_errors.py")]
    classes = re.findall(r"^class (\w+)", "".join(sources), re.MULTILINE)
    named = re.findall(r"error: (\w+)", "".join(EXAMPLES))
    assert named
    assert set(named) <= set(classes)


def test_the_reference_names_every_key_and_no_other():
    assert first_column(section("## Top level")) == list(Scenario.model_fields)
    assert first_column(section("## machine")) == list(Machine.model_fields)
    steps, expect = section("## steps").split("### expect of a step")
    assert first_column(steps) == list(KINDS)
    assert first_column(expect) == list(StepExpect.model_fields)
    whole, fault = section("## expect of the scenario").split("A fault:")
    assert first_column(whole) == list(ScenarioExpect.model_fields)
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \| ", fault, re.MULTILINE)))) == set(
        FaultExpect.model_fields
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_names_every_argument_and_its_default(kind: str):
    row = next(line for line in SCENARIOS.splitlines() if line.startswith(f"| `{kind}` |"))
    arguments = row.split("|")[2]
    if "as `" in arguments:
        arguments = next(line for line in SCENARIOS.splitlines() if line.startswith(f"| {arguments.split()[-1]} |"))
        arguments = arguments.split("|")[2]
    for name, field in KINDS[kind].model_fields.items():
        key = field.alias or name
        found = re.search(rf"\b{key}(\*|\b(?: or \w+\*?)?)(?: \(([^)]*)\))?", arguments)
        assert found, (kind, key)
        if field.is_required():
            assert found[1] == "*", (kind, key)
        elif isinstance(field.default, int):
            said = (found[2] or "").split()[0]
            default = str(field.default).lower()
            assert said in (default, {"4096": "4K"}.get(default)), (kind, key)


def test_the_exit_codes_of_readme_and_help_are_the_same():
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert table == {int(code) for code in re.findall(r"^ +(\d+)  ", EXIT_CODES, re.MULTILINE)}


def test_links_lead_somewhere():
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text()):
            assert (file.parent / target).exists(), (file, target)


def ci(tmp_path: Path, line: str) -> subprocess.CompletedProcess[str]:
    """``.ci/run`` with a README of its own."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    (tmp_path / "README.md").write_text(f"# x\n\n<!-- test line -->\n```sh\n{line}\n```\n\n```sh\npython3 no\n```\n")
    return subprocess.run(["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, check=False)


def test_ci_runs_the_readmes_test_line_and_ends_with_the_counts(tmp_path: Path):
    line = "python3 -c \"print('==== 700 passed in 3.2s ====\\\\n= 2 passed in 9.00s =\\\\nnox > done')\""
    done = ci(tmp_path, line)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"+ {line}\n")
    assert done.stdout.splitlines()[-2:] == ["==== 700 passed in 3.2s ====", "= 2 passed in 9.00s ="]


def test_ci_fails_when_the_test_line_fails(tmp_path: Path):
    done = ci(tmp_path, "python3 -c \"import sys; print('= 1 failed in 1.0s ='); sys.exit(3)\"")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-1] == "= 1 failed in 1.0s ="


def test_the_ci_script_can_be_started_and_the_readme_has_one_test_line():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    after = README.split("<!-- test line -->")
    assert len(after) == 2
    assert after[1].startswith("\n```sh\npython3 -m venv .venv && ")
    assert after[1].split("```")[1].rstrip().endswith("/nox")
