"""What a scenario says of the kernel's own functions; the list of their differences, the scenarios and the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scenario_said import problems_of, said

from harness.paths import scenarios_dir
from harness.scenario import Scenario, find_scenarios, load_scenario, parse_scenario
from harness.scenario.kernel_differences import KERNEL_DIFFERENCES, WITHOUT_SCENARIO
from harness.scenario.on_kernel import unmet_kernel

DOCS = Path(__file__).parents[3] / "docs"
LOADED = [load_scenario(file) for file in find_scenarios([scenarios_dir()])]
SCENARIOS = [one for one in LOADED if isinstance(one, Scenario)]
HEAD = 'title: t\nsource: s\nmachine: {devices: {edu0: {model: edu, at: "02:00.0"}}}\n'
STEP = "steps:\n  - merge_boundary: {device: edu0}\n"
OPENED = STEP.replace("  - ", "  - register: {device: edu0}\n  - ", 1)


def named(scenario: Scenario) -> set[str]:
    """The ids that a scenario's ``kernel`` blocks name."""
    steps = [one for step in scenario.steps for one in (step, *getattr(step.args, "steps", ()))]
    known = [step.kernel for step in steps if step.kernel is not None]
    whole = scenario.expect.kernel
    return {one.id for one in known} | ({whole.id} if whole is not None else set())


@pytest.mark.parametrize("difference", KERNEL_DIFFERENCES)
def test_every_difference_has_a_scenario_that_shows_it(difference: str) -> None:
    assert [scenario.id for scenario in SCENARIOS if difference in named(scenario)]


def test_a_scenario_that_says_something_of_the_kernel_runs_on_it() -> None:
    telling = [scenario for scenario in SCENARIOS if named(scenario)]
    assert telling
    for scenario in telling:
        assert unmet_kernel(scenario) is None, scenario.id
        assert scenario.needs.implementation in (None, "kernel"), f"{scenario.id}: nothing would ever judge it"


def rows(page: str, heading: str) -> dict[str, str]:
    """The rows of a page's table by their ids."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {found[1]: found[0] for found in re.finditer(r"^\| (K\d+) \|.*$", text, re.MULTILINE)}


def test_the_page_has_every_difference_and_a_scenario_where_there_is_one() -> None:
    told = rows("kernel-dma-iova.md", "Where they differ")
    assert list(told) == [f"K{number}" for number in range(1, len(told) + 1)]
    assert [one for one, row in told.items() if "`iova/" in row] == list(KERNEL_DIFFERENCES)
    assert [one for one in told if one not in KERNEL_DIFFERENCES] == list(WITHOUT_SCENARIO)


@pytest.mark.parametrize("difference", KERNEL_DIFFERENCES)
def test_the_page_names_scenarios_that_show_it(difference: str) -> None:
    scenarios = re.findall(r"`(iova/\w+)`", rows("kernel-dma-iova.md", "Where they differ")[difference])
    assert scenarios
    by_id = {scenario.id: named(scenario) for scenario in SCENARIOS}
    assert all(difference in by_id[scenario] for scenario in scenarios)


def test_what_a_step_says_of_the_kernel() -> None:
    known = "    kernel: {differs: K1, versions: '>=7.2', expect: {returns: 0}}\n"
    scenario = parse_scenario(HEAD + OPENED + known, "x.yaml")
    assert isinstance(scenario, Scenario)
    _, step = scenario.steps
    assert step.kernel is not None
    assert step.deviations == {"libusdm": None, "kernel": step.kernel}
    assert (step.kernel.id, step.kernel.expect.returns) == ("K1", 0)
    assert step.kernel.applies("7.2.12+deb13-amd64")
    assert not step.kernel.applies("6.16.3+deb13-amd64")


KNOWN = "    kernel: {differs: K1, expect: {returns: 0}}\n"


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        (
            f"needs: {{implementation: usdm}}\n{OPENED}{KNOWN}",
            (8, 5),
            "needs: {implementation: usdm} keeps it from running there",
        ),
        (
            f"{OPENED}{KNOWN}  - unregister: {{device: edu0}}\n",
            (7, 5),
            "the kernel has nothing for the step unregister: nothing is registered with the kernel",
        ),
        (
            f"{OPENED}  - fork: {{steps: [{{merge_boundary: {{device: edu0}}, "
            "kernel: {differs: K1, expect: {returns: 0}}}]}\n",
            (7, 53),
            "the kernel has nothing for the step fork: a file of the test module belongs to one process",
        ),
        (
            f"needs: {{implementation: libusdm}}\n{OPENED}expect:\n"
            "  kernel: {differs: K1, faults: [{device: edu0, access: read, address: 4096, reason: 6}]}\n",
            (9, 3),
            "needs: {implementation: libusdm} keeps it from running there",
        ),
    ],
)
def test_what_no_run_on_the_kernel_could_show(text: str, place: tuple[int, int], why: str) -> None:
    (found,) = problems_of(HEAD + text)
    assert ((found.line, found.column), found.hint) == (place, why)
    assert found.message == "expected no kernel where the kernel cannot run the scenario, found one"


def test_what_only_the_kernel_runs_may_say_what_it_does() -> None:
    assert parse_scenario(f"{HEAD}needs: {{implementation: kernel}}\n{OPENED}{KNOWN}", "x.yaml")


@pytest.mark.parametrize(("difference", "why"), WITHOUT_SCENARIO.items())
def test_what_no_scenario_can_show_is_refused_with_the_reason(difference: str, why: str) -> None:
    found = problems_of(f"{HEAD}{OPENED}    kernel: {{differs: {difference}}}\n")
    message = f"expected a difference that a scenario can show, found '{difference}'"
    assert [(one.message, one.hint) for one in found] == [(message, why)]


def test_an_unknown_difference_is_refused_with_what_there_is() -> None:
    (found,) = problems_of(f"{HEAD}{OPENED}    kernel: {{differs: K999}}\n")
    assert found.message == "expected the id of a known difference, found 'K999'"
    assert all(f"{name}: {meaning}" in str(found.hint) for name, meaning in KERNEL_DIFFERENCES.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel: {differs: K999}", "6:23 expected"),
        ("kernel: {differs: D1}", "6:23 expected"),
        ("kernel: {expect: {returns: 0}}", "6:5 expected 'differs' in 'kernel', found none"),
        ("kernel: {defect: D1}", "6:14 expected a known key in 'kernel', found 'defect'"),
        ("libusdm: {differs: K1}", "6:15 expected a known key in 'libusdm', found 'differs'"),
        ("kernel: {differs: K1, expect: {mapped: none}}", "6:36 expected"),
        ("kernel: {differs: K1, expect: {return: 0}}", "6:36 expected a known key in 'expect', found 'return'"),
        ("kernel: {differs: K1, versions: seven}", "6:37 expected"),
    ],
)
def test_what_is_wrong_of_a_step(text: str, message: str) -> None:
    found = said(f"{HEAD}{STEP}    {text}\n")
    assert any(one.startswith(message) for one in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{differs: K0, faults: []}", "7:21 expected"),
        ("{differs: K1, fault: []}", "7:25 expected a known key in 'kernel', found 'fault'"),
        ("{differs: K1, faults: [{device: edu1, access: read, address: 1, reason: 6}]}", "7:43 expected"),
        ("{faults: []}", "7:3 expected 'differs' in 'kernel', found none"),
    ],
)
def test_what_is_wrong_of_the_whole(text: str, message: str) -> None:
    found = said(f"{HEAD}{STEP}expect:\n  kernel: {text}\n")
    assert any(one.startswith(message) for one in found), found


INFO = (
    "steps:\n  - register: {device: edu0}\n  - buffer: {as: b, size: 4K}\n"
    "  - iova_alloc: {device: edu0, as: r, buffer: b, size: 4K}\n  - iova_info: {range: r}\n"
)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("expect: {counts: {links: 1, nonsense: 5}}", "9:33 expected a count of iova_info, found 'nonsense'"),
        ("kernel: {differs: K1, expect: {counts: {links: 7}}}",
         "9:45 expected a count of iova_info that the kernel keeps, found 'links'"),
        ("libusdm: {defect: D1, expect: {counts: {linked: 7}}}", "9:45 expected a count of iova_info, found 'linked'"),
        ("expect: {counts: {in_use: 1}}\n    kernel: {differs: K2, expect: {counts: {in_use: 1}}}",
         "10:5 expected an expectation that differs from the step's own, found the same"),
        ("kernel: {differs: K2}", "9:5 expected an expectation that differs from the step's own, found the same"),
    ],
)  # fmt: skip
def test_counts_and_differences_that_are_none(lines: str, message: str) -> None:
    found = said(f"{HEAD}{INFO}    {lines}\n")
    assert any(one.startswith(message) for one in found), found


def test_faults_that_do_not_differ() -> None:
    fault = "{device: edu0, access: read, address: 0x900000, reason: 6}"
    text = f"expect:\n  faults: [{fault}]\n  kernel: {{differs: K1, faults: [{fault}]}}\n"
    found = said(f"{HEAD}{STEP}{text}")
    assert any("expected an expectation that differs from the scenario's own, found the same" in one for one in found)
