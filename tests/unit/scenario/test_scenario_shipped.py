"""The scenarios and the schema that come with the project."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from harness.agent import outcome
from harness.paths import scenarios_dir
from harness.scenario import (
    BARE_KINDS,
    KINDS,
    BareScenario,
    Scenario,
    Step,
    expect_keys,
    find_scenarios,
    lint,
    load_scenario,
    yaml_marks,
)
from harness.scenario.args import DmaArgs
from harness.scenario.defects import DEFECTS, OTHER
from harness.scenario.expect import StepExpect
from harness.scenario.kernel_differences import KERNEL_DIFFERENCES
from harness.scenario.machine import Needs
from harness.scenario.schema import json_schema, main, schema_text
from harness.scenario.steps import ORACLES
from usdm import dma_errors, errors

FOLDER = scenarios_dir()
FILES = find_scenarios([FOLDER])
LOADED = [load_scenario(file) for file in FILES]
SCENARIOS = [one for one in LOADED if isinstance(one, Scenario)]
BARE = [one for one in LOADED if isinstance(one, BareScenario)]
IDS = [scenario.id for scenario in SCENARIOS]


class _AsText(yaml.SafeLoader):
    pass


_AsText.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_str)


def all_steps(scenario: Scenario) -> list[Step]:
    return [one for step in scenario.steps for one in (step, *getattr(step.args, "steps", ()))]


def test_there_are_enough_and_none_has_a_mistake() -> None:
    assert lint([FOLDER]) == []
    assert len(FILES) >= 100
    assert len({scenario.title for scenario in LOADED}) == len(LOADED)
    assert len(BARE) >= 40
    assert all(re.fullmatch(r"bare/[a-z0-9_]+", one.id) for one in BARE)
    families = "amd|dma|iova|libusdm|misbehaviour|noiommu|nvme|qat|remap|sriov|tables|usdm|virtio|vm"
    assert all(re.fullmatch(rf"({families})/[a-z0-9_]+", one) for one in IDS)


def test_every_kind_of_step_is_used() -> None:
    assert {step.kind for scenario in SCENARIOS for step in all_steps(scenario)} >= set(KINDS) - {"close"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=IDS)
def test_scenario(scenario: Scenario) -> None:
    text = scenario.file.read_text()
    assert text.startswith("# yaml-language-server: $schema=../schema.json\n")
    assert re.search(r'"[^"]{8,}"', scenario.source), "the source quotes the specification"
    assert all(len(line) <= 180 for line in text.splitlines())
    assert all(fault.step is not None for fault in scenario.expect.faults)
    known = scenario.expect.libusdm
    for faults in (scenario.expect.faults, known.faults if known else ()):
        limit = 3 if scenario.machine.iommu == "intel" else 10
        assert len(faults) <= limit, "the kernel reports so many faults per five seconds, of VT-d about three"
    for step in all_steps(scenario):
        assert is_good(step.kind, step.expect, of_usdm=True), f"{step.kind} expects {step.expect}"
        if step.libusdm is not None:
            assert is_good(step.kind, step.libusdm.expect, of_usdm=False), f"{step.kind} expects {step.libusdm}"
            assert step.libusdm.expect != step.expect, "then it does the same"


def is_good(kind: str, expect: StepExpect, *, of_usdm: bool) -> bool:
    """What can fail says what it returns where it does not fail, and the errors that it names exist."""
    if kind in ("alloc", "map") and expect.error is None and not expect.names("returns"):
        return False
    names = (*dir(outcome), *((*dir(errors), *dir(dma_errors)) if of_usdm else ("CFailure", "NotOffered")))
    return expect.error is None or expect.error in names


@pytest.mark.parametrize("scenario", SCENARIOS, ids=IDS)
def test_no_dma_goes_to_the_end_of_edu_on_old_qemu(scenario: Scenario) -> None:
    """QEMU 7.2 aborts when edu copies the last byte of its buffer."""
    ends = [
        step.args_json()["size"] + step.args_json()["device_offset"]
        for step in all_steps(scenario)
        if isinstance(step.args, DmaArgs) and scenario.machine.devices[step.args.device].model == "edu"
    ]
    assert max(ends, default=0) < 4096 or scenario.needs.unmet(qemu="7.2.22", kernel="6.12")


def test_every_kind_of_step_of_the_bare_tier_is_used() -> None:
    assert {step.kind for scenario in BARE for step in scenario.steps} == set(BARE_KINDS)


@pytest.mark.parametrize("scenario", BARE, ids=[one.id for one in BARE])
def test_bare_scenario(scenario: BareScenario) -> None:
    text = scenario.file.read_text()
    assert text.startswith("# yaml-language-server: $schema=../schema.json\ntier: bare\n")
    assert re.search(r'"[^"]{8,}"', scenario.source), "the source quotes the specification"
    assert all(len(line) <= 180 for line in text.splitlines())
    assert all(fault.step is not None for fault in scenario.expect.faults)


def test_schema_is_current() -> None:
    text = (FOLDER / "schema.json").read_text()
    assert text == schema_text(), "write it anew: python -m harness.scenario.schema"


def test_schema_is_written(tmp_path: Path) -> None:
    assert main([str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()


def test_schema_says_what_the_models_say() -> None:
    schema = json_schema()
    scenario, bare = schema["$defs"]["Scenario"], schema["$defs"]["BareScenario"]
    of_scenarios = schema["else"]["else"]
    assert of_scenarios["then"] == {"$ref": "#/$defs/BareScenario"}
    assert of_scenarios["else"] == {"$ref": "#/$defs/Scenario"}
    assert scenario["required"] == ["title", "source", "machine", "steps"]
    assert bare["required"] == ["tier", "title", "source", "machine", "steps"]
    assert set(schema["$defs"]["BareStep"]["properties"]) == {*BARE_KINDS, "expect", "id", "qemu"}
    step = schema["$defs"]["Step"]
    assert set(step["properties"]) == {*KINDS, "expect", "id", "libusdm", "kernel"}
    assert step["additionalProperties"] is False
    for kind, rule in zip(KINDS, step["allOf"], strict=True):
        assert rule["if"] == {"required": [kind]}
        both = rule["then"]["properties"]
        for part in (both["expect"], *(both[oracle]["properties"]["expect"] for oracle in ORACLES)):
            assert part["propertyNames"]["enum"] == list(expect_keys(kind))
    for model in ("LibraryDeviation", "FaultsOnLibrary"):
        assert schema["$defs"][model]["required"] == ["defect"]
        assert schema["$defs"][model]["properties"]["defect"]["enum"] == [*DEFECTS, *OTHER]
    for model in ("KernelDeviation", "FaultsOnKernel"):
        assert schema["$defs"][model]["required"] == ["differs"]
        known = schema["$defs"][model]["properties"]["differs"]
        assert known.get("enum", [known.get("const")]) == list(KERNEL_DIFFERENCES)
    assert set(schema["$defs"]["Needs"]["properties"]) == set(Needs.model_fields)
    assert set(schema["$defs"]["DmaRead"]["properties"]) == {
        "device",
        "iova",
        "buffer",
        "range",
        "offset",
        "size",
        "device_offset",
    }
    assert "as" in schema["$defs"]["Alloc"]["required"]


@pytest.mark.parametrize("name", ["release.yaml", "smoke.yaml", "known-failures.yaml"])
def test_matrices_fit_the_schema(name: str) -> None:
    # As an editor reads it: a day is a text.
    data = yaml.load((FOLDER / name).read_text(), _AsText)  # noqa: S506
    assert list(Draft202012Validator(json_schema()).iter_errors(data)) == []
    with_mistake = data | {"axis": {}}
    assert [error.validator for error in Draft202012Validator(json_schema()).iter_errors(with_mistake)] == [
        "additionalProperties"
    ]


@pytest.mark.parametrize(
    ("matrix", "where"),
    [
        ({"axes": {"qemu": ["9.9"]}}, ["axes", "qemu"]),
        ({"axes": {"vcpus": 65}}, ["axes", "vcpus"]),
        ({"parts": [{"axes": {"quemu": ["11.1"]}}]}, ["parts", 0, "axes"]),
        ({"include": [{"at": {"qemu": ["11.1"]}}]}, ["include", 0, "at", "qemu"]),
        ({"expectations": [{"when": {"qemu": "7.2"}, "why": "y", "expect": {"x": 1}}]}, ["expectations", 0, "expect"]),
        ({"expectations": [{"when": {}, "why": "y", "steps": {"0": {"x": 1}}}]}, ["expectations", 0, "steps", "0"]),
    ],
)
def test_the_schema_finds_mistakes_in_a_matrix(matrix: dict[str, Any], where: list[Any]) -> None:
    (error,) = Draft202012Validator(json_schema()).iter_errors({"matrix": "x", **matrix})
    assert list(error.path) == where


def test_everything_in_the_schema_is_described_and_defined() -> None:
    schema = json_schema()
    used: set[str] = set()

    def walk(part: Any, path: str) -> None:
        if isinstance(part, dict):
            for name, field in part.get("properties", {}).items() if "then" not in path.split("/") else ():
                assert field.get("description") or "$ref" in field, f"{path}/{name}"
            if "$ref" in part:
                used.add(part["$ref"].removeprefix("#/$defs/"))
            for key, value in part.items():
                walk(value, f"{path}/{key}")
        elif isinstance(part, list):
            for item in part:
                walk(item, path)

    walk(schema, "")
    assert used == set(schema["$defs"])
    assert all(definition.get("description") for definition in schema["$defs"].values())


@pytest.mark.skipif(not hasattr(yaml, "CSafeLoader"), reason="PyYAML was built without libyaml")
def test_both_parsers_read_the_same() -> None:
    for file in find_scenarios([FOLDER]):
        text = file.read_text()
        with_libyaml, without = (yaml_marks._Reader(file, loader) for loader in (yaml.CSafeLoader, yaml.SafeLoader))
        with_libyaml.read(text)
        without.read(text)
        assert with_libyaml.document == without.document, file
