"""Scenarios at points of a matrix: what a point changes, what it may not change, and what is expected there instead."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import ConfigurationError
from harness.paths import scenarios_dir
from harness.run.models import with_model
from harness.scenario import Scenario, find_scenarios, load_scenario, parse_scenario
from harness.scenario.point import CMDLINES, VIOMMUS, NotApplicable, Point, Rule, at_point

FAULT = """
title: t
source: s
machine: {%s devices: {edu0: {model: edu, at: "02:00.0"}}}
steps:
  - register: {device: edu0}
  - bus_master: {device: edu0, enabled: true}
  - dma_read: {device: edu0, iova: 0x900000, size: 4}
    id: refused
expect:
  faults: [{device: edu0, access: read, address: 0x900000, reason: 6}]
"""
FORK = """
title: t
source: s
machine: {}
steps:
  - alloc: {as: a, size: 4K}
    expect: {returns: nonzero}
  - fork: {steps: [{statistics: {}, id: inner}]}
"""


def scenario(text: str = FAULT, machine: str = "") -> Scenario:
    found = parse_scenario(text % machine if "%s" in text else text, "x.yaml")
    assert isinstance(found, Scenario)
    return found


def refusal(one: Scenario, rule: Rule | None = None, **axes: Any) -> str:
    with pytest.raises(NotApplicable) as caught:
        at_point(one, Point(**axes), rule)
    return caught.value.reason


def rule(**parts: Any) -> Rule:
    return Rule(why="because", **parts)


MAPPING = rule(reasons={5: "mapping", 6: "mapping"})


@pytest.mark.parametrize(
    "axes", [{}, {"viommu": "intel"}, {"cmdline": "default"}, {"hugepages": 0}, {"vcpus": 1}], ids=str
)
def test_a_point_that_changes_nothing_gives_the_same_object(axes: dict[str, Any]) -> None:
    one = scenario()
    assert at_point(one, Point(**axes)) is one


@pytest.mark.parametrize("name", ["intel-39", "intel-scalable", "intel-scalable-39"])
def test_a_viommu_of_intel_changes_its_keys(name: str) -> None:
    machine = at_point(scenario(), Point(viommu=name)).machine
    wanted = VIOMMUS[name]
    assert (machine.iommu, machine.aw_bits, machine.scalable) == ("intel", wanted.aw_bits, wanted.scalable)


def test_the_rest_of_the_scenario_stays() -> None:
    one = scenario()
    there = at_point(one, Point(viommu="intel-39", vcpus=2))
    assert (there.id, there.file, there.steps, there.expect) == (one.id, one.file, one.steps, one.expect)
    assert there.machine.devices == one.machine.devices
    assert at_point(there, Point(cmdline="strict")).machine.cpus == 2


@pytest.mark.parametrize(("name", "word"), [item for item in CMDLINES.items() if item[1]])
def test_a_command_line_is_added_to_the_scenarios_own(name: str, word: str) -> None:
    there = at_point(scenario(machine="kernel_args: [quiet],"), Point(cmdline=name, hugepages=8))
    assert there.machine.kernel_args == ("quiet", word, "hugepages=8")


def test_a_command_line_that_says_the_same_is_left_alone() -> None:
    one = scenario(machine="kernel_args: [iommu=pt],")
    assert at_point(one, Point(cmdline="pt")) is one
    assert at_point(one, Point(cmdline="default")) is one
    one = scenario(machine="kernel_args: [hugepages=8],")
    assert at_point(one, Point(hugepages=8)) is one


@pytest.mark.parametrize(
    ("machine", "axes", "reason"),
    [
        ("aw_bits: 39,", {"viommu": "intel"}, "the scenario is about aw_bits: 39"),
        ("aw_bits: 48,", {"viommu": "intel-39"}, "the scenario is about aw_bits: 48"),
        ("scalable: true,", {"viommu": "intel"}, "the scenario is about scalable: true"),
        ("scalable: false,", {"viommu": "intel-scalable"}, "the scenario is about scalable: false"),
        ("cpus: 2,", {"vcpus": 4}, "the scenario is about cpus: 2"),
        ("kernel_args: [iommu=pt],", {"cmdline": "strict"}, "the scenario is about iommu=pt"),
        ("kernel_args: [iommu=pt, iommu.strict=1],", {"cmdline": "strict"}, "about iommu=pt iommu.strict=1"),
        ("kernel_args: [intel_iommu=sp_off],", {"cmdline": "lazy"}, "the scenario is about intel_iommu=sp_off"),
        ("kernel_args: [hugepages=8],", {"hugepages": 4}, "the scenario is about hugepages=8"),
        ("memory: 512M,", {"hugepages": 129}, "129 hugepages of 2 MiB leave too little of its 512 MiB"),
        ("", {"viommu": "none"}, "the scenario is about iommu: intel"),
    ],
)
def test_what_a_scenario_writes_down_is_what_it_is_about(machine: str, axes: dict[str, Any], reason: str) -> None:
    assert reason in refusal(scenario(machine=machine), **axes)


@pytest.mark.parametrize("machine", ["aw_bits: 39,", "cpus: 2,", "scalable: true,"])
def test_what_agrees_with_it_is_run(machine: str) -> None:
    one = scenario(machine=machine)
    agreeing = {"aw_bits": Point(viommu="intel-39"), "cpus": Point(vcpus=2), "scalable": Point(viommu="intel-scalable")}
    assert at_point(one, agreeing[machine.split(":")[0]]) is one


@pytest.mark.parametrize("iommu", ["virtio", "amd", "none"])
@pytest.mark.parametrize("name", VIOMMUS)
def test_a_scenario_of_another_viommu_is_run_on_that_alone(iommu: str, name: str) -> None:
    one = scenario(FORK.replace("{}", f"{{iommu: {iommu}}}", 1))
    if VIOMMUS[name].iommu == iommu:
        assert at_point(one, Point(viommu=name)).machine.aw_bits == VIOMMUS[name].aw_bits
    else:
        assert refusal(one, viommu=name) == f"the scenario is about iommu: {iommu}"


def test_without_an_iommu_no_word_can_be_about_it() -> None:
    one = scenario(FORK.replace("{}", "{iommu: none}", 1))
    assert refusal(one, cmdline="pt") == "there is no IOMMU that iommu.passthrough=1 could be about"
    assert at_point(one, Point(cmdline="default")) is one


def test_on_another_viommu_it_is_checked_again() -> None:
    assert "expected a reason of iommu: virtio (unknown or domain or mapping), found 0x06" in refusal(
        scenario(), viommu="virtio"
    )
    there = at_point(scenario(), Point(viommu="virtio"), MAPPING)
    assert [(fault.vendor, fault.reason) for fault in there.expect.faults] == [("virtio", "mapping")]


def test_what_the_other_viommu_cannot_show_is_told() -> None:
    one = scenario(FAULT.replace("expect:\n", "  - mappings: {device: edu0, iova: 0, size: 4K}\nexpect:\n"))
    assert "expected no mappings behind virtio-iommu" in refusal(one, MAPPING, viommu="virtio")
    assert "expected no mappings behind amd-iommu" in refusal(one, rule(reasons={6: "io_page_fault"}), viommu="amd")
    far = scenario(FAULT.replace("02:00.0", "3d:00.0"))
    assert "expected buses 00 to 08 with iommu: amd" in refusal(far, viommu="amd")


def test_a_line_of_the_kernels_log_is_the_viommus_own() -> None:
    one = scenario(FAULT + '  kernel_log: ["DMAR: .*"]\n')
    assert "it expects lines of the kernel's log" in refusal(one, MAPPING, viommu="virtio")
    faults = [{"device": "edu0", "access": "read", "address": 0x900000, "reason": "mapping"}]
    there = at_point(one, Point(viommu="virtio"), rule(expect={"faults": faults}))
    assert (len(there.expect.faults), there.expect.kernel_log) == (1, ())
    assert at_point(one, Point(viommu="intel-39")).expect == one.expect


def test_the_reasons_of_an_oracle_change_too() -> None:
    text = FAULT + "  libusdm: {defect: D1, faults: [{device: edu0, access: read, address: 0xA00000, reason: 6}]}\n"
    there = at_point(scenario(text), Point(viommu="virtio"), MAPPING)
    assert there.expect.libusdm is not None
    assert [fault.reason for fault in there.expect.libusdm.faults] == ["mapping"]


@pytest.mark.parametrize("key", ["refused", 2])
def test_a_step_is_named_by_its_id_or_its_position(key: str | int) -> None:
    there = at_point(scenario(), Point(), rule(steps={key: {"error": "InvalidArgument"}}))
    assert [step.expect.error for step in there.steps] == [None, None, "InvalidArgument"]


def test_a_step_inside_another_is_named_by_its_id() -> None:
    there = at_point(scenario(FORK), Point(), rule(steps={"inner": {"counts": {"maps": 1}}}))
    assert there.steps[1].args.steps[0].expect.counts == {"maps": 1}  # type: ignore[attr-defined]
    assert there.steps[0].expect.returns == "nonzero"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"steps": {"wrong": {}}}, "has no step wrong (because)"),
        ({"steps": {7: {}}}, "has no step 7 (because)"),
        ({"steps": {0: {"mapped": "whole"}}}, "expected a key that fits register, found 'mapped'"),
        ({"steps": {0: {"eror": "X"}}}, "eror"),
        ({"expect": {"faults": 5}}, "expected a list, found 5"),
        (
            {"expect": {"faults": [{"device": "edu7", "access": "read", "address": 1, "reason": 6}]}},
            "expected a device of the machine, found 'edu7'",
        ),
    ],
)
def test_a_rule_that_does_not_fit_is_a_mistake(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        at_point(scenario(), Point(), rule(**parts))
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("viommu", "reasons", "said"),
    [("virtio", {6: "io_page_fault"}, "io_page_fault"), ("intel", {6: "mapping"}, "mapping")],
)
def test_a_rule_is_blamed_for_reasons_that_are_none_there(viommu: str, reasons: dict[Any, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        at_point(scenario(), Point(viommu=viommu), rule(reasons=reasons))
    assert "because" in caught.value.message
    assert said in caught.value.message
    # It says nothing of the file's reason, which is none there.
    assert "0x06" in refusal(scenario(), rule(reasons={5: "mapping"}), viommu="virtio")


def test_a_rule_is_not_blamed_for_what_the_point_cannot_have() -> None:
    one = scenario(FAULT.replace("expect:\n", "  - mappings: {device: edu0, iova: 0, size: 4K}\nexpect:\n"))
    assert "mappings" in refusal(one, rule(expect={}), viommu="virtio")


def test_a_step_that_sets_hugepages_has_the_last_word() -> None:
    one = scenario(FORK.replace("alloc: {as: a, size: 4K}", "hugepages: {pages: 2}").replace("returns: nonzero", ""))
    assert refusal(one, hugepages=4) == "a step of the scenario says how many hugepages there are"
    assert at_point(one, Point(vcpus=2)).machine.cpus == 2


def test_what_is_about_none_gets_none() -> None:
    one = load_scenario(scenarios_dir() / "libusdm" / "h01_no_hugepages.yaml")
    assert isinstance(one, Scenario)
    assert refusal(one, hugepages=4) == "the scenario is about a kernel without hugepages"
    assert at_point(one, Point(hugepages=0)) is one


@pytest.mark.parametrize("axes", [{"viommu": "vtd"}, {"cmdline": "fast"}])
def test_an_unknown_value_is_a_mistake(axes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="there is no"):
        at_point(scenario(), Point(**axes))


def test_a_model_that_was_put_in_stays() -> None:
    there = at_point(with_model(scenario(), "qat"), Point(viommu="intel-39"))
    assert there.machine.devices["edu0"].model == "qat"


def test_what_is_about_the_kernels_own_mappings_is_not_run_without_any() -> None:
    driver = load_scenario(scenarios_dir() / "iova" / "kernel_nvme.yaml")
    identity = load_scenario(scenarios_dir() / "iova" / "kernel_nvme_identity.yaml")
    assert isinstance(driver, Scenario)
    assert isinstance(identity, Scenario)
    assert refusal(driver, cmdline="pt") == "with iommu.passthrough=1 the kernel's own drivers map nothing"
    assert at_point(driver, Point(cmdline="strict")).machine.kernel_args == ("iommu.strict=1",)
    assert at_point(identity, Point(cmdline="pt")) is identity


def reason_at(one: Scenario, point: Point, rule: Rule | None = None) -> str:
    """Why a scenario means nothing at a point; empty when it does. Anything else that is raised is a defect."""
    try:
        at_point(one, point, rule)
    except NotApplicable as error:
        return error.reason
    return ""


def test_every_shipped_scenario_is_itself_where_it_was_written_for_or_says_why_not() -> None:
    loaded = [load_scenario(file) for file in find_scenarios([scenarios_dir()])]
    guests = [one for one in loaded if isinstance(one, Scenario)]
    reasons = [reason_at(one, Point(viommu="intel", cmdline="default")) for one in guests]
    assert {reason.split(":")[0] for reason in reasons if reason} <= {
        f"the scenario is about {key}" for key in ("iommu", "aw_bits", "scalable")
    }
    assert reasons.count("") > len(guests) * 0.7
    for name in VIOMMUS:
        reasons = [reason_at(one, Point(viommu=name, vcpus=2), MAPPING if "virtio" in name else None) for one in guests]
        assert 0 < reasons.count("") < len(guests)
        assert not any("\n" in reason for reason in reasons)
