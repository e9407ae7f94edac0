"""docs/steps: made from the models, and every kind, argument and key is in an example that is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_text import DOCS, Block, case, scenarios
from pydantic import BaseModel

from harness.scenario import KINDS, parse_scenario
from harness.scenario.bare import BareScenario
from harness.scenario.bare_steps import BARE_KINDS, BareExpect, bare_expect_keys
from harness.scenario.expect import StepExpect
from harness.scenario.kind_step import KindStep
from harness.scenario.model import Scenario
from harness.scenario.reference import pages, render
from harness.scenario.steps import expect_keys

PAGES = sorted((DOCS / "steps").glob("*.md"))
EXAMPLES = scenarios()
EXECUTED = [block for block in EXAMPLES if block.file in PAGES]

NOT_SHOWN = {
    # what an oracle does otherwise is shown with a defect of its own only where there is one on every version
    (
        "LibraryDeviation",
        "versions",
    ): "scenarios/libusdm shows it",
    ("KernelDeviation", "versions"): "of the kernels that there are, 7.2 alone has the module",
    ("FaultsOnLibrary", "defect"): "scenarios/libusdm shows them; each costs a guest more",
    ("FaultsOnLibrary", "versions"): "as above",
    ("FaultsOnLibrary", "faults"): "as above",
    ("FaultsOnKernel", "differs"): "scenarios/iova/k25_stream_unmap.yaml and its neighbours show them",
    ("FaultsOnKernel", "versions"): "as above",
    ("FaultsOnKernel", "faults"): "as above",
    ("ScenarioExpect", "libusdm"): "see FaultsOnLibrary",
    ("ScenarioExpect", "kernel"): "see FaultsOnKernel",
    ("Machine", "scalable"): "docs/viommus.md and scenarios/dma show it; a template of its own",
    ("BareMachine", "first_stage"): "scenarios/bare/first_*.yaml show it",
    ("RootFields", "*"): "see the step root; of tables, scenarios/bare/root_*.yaml",
    ("Tables", "roots"): "see RootFields",
    ("Interrupts", "table"): "addresses without memory: scenarios/bare/interrupt_table_without_memory.yaml",
    ("*", "table"): "addresses without memory: root_table shows one, scenarios/bare the others",
    ("*", "bits"): "reserved bits: scenarios/bare/*_reserved.yaml",
    ("PasidFields", "type"): "types of entries: scenarios/bare/scalable_pasid_type.yaml",
    ("PasidFields", "no_faults"): "scenarios/bare/scalable_no_faults.yaml",
}


def shown(name: str, key: str) -> bool:
    return any((a, b) in NOT_SHOWN for a in (name, "*") for b in (key, "*"))


def inside(value: object) -> Iterator[BaseModel]:
    """A model and every model in it."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from inside(getattr(value, name))
    elif isinstance(value, dict):
        for one in value.values():
            yield from inside(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from inside(one)


def steps_of(scenario: Scenario | BareScenario) -> list[KindStep]:
    return [model for model in inside(scenario) if isinstance(model, KindStep)]


def models(of: type[BaseModel], found: dict[str, type[BaseModel]]) -> dict[str, type[BaseModel]]:
    """Every model that a file can have in it, by name."""
    if of.__name__ not in found:
        found[of.__name__] = of
        text = [str(field.annotation) for field in of.model_fields.values()]
        for other in subclasses(BaseModel):
            if any(re.search(rf"\b{re.escape(other.__module__)}\.{other.__name__}\b", one) for one in text):
                models(other, found)
    return found


def subclasses(of: type[BaseModel]) -> set[type[BaseModel]]:
    direct = set(of.__subclasses__())
    return direct | {two for one in direct for two in subclasses(one)}


PARSED = [parse_scenario(block.text, str(block)) for block in EXECUTED]
READ = [(one, step) for one in PARSED for step in steps_of(one)]
WRITTEN = {(type(model).__name__, key) for one in PARSED for model in inside(one) for key in model.model_fields_set}
MODELS = models(BareScenario, models(Scenario, {}))
ARGS = {f"{tier}: {kind}": of for tier, kinds in (("guest", KINDS), ("bare", BARE_KINDS)) for kind, of in kinds.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_models(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == render(text), "python -m harness.scenario.reference writes them anew"


def test_every_kind_is_on_a_page_and_in_the_index() -> None:
    assert set(pages()) == {("steps", kind) for kind in KINDS} | {("bare", kind) for kind in BARE_KINDS}
    index = (DOCS / "steps" / "README.md").read_text()
    for (_, kind), page in pages().items():
        assert f"| [`{kind}`]({page}#{kind}) |" in index


@pytest.mark.parametrize("block", [case(block) for block in EXAMPLES])
def test_every_example_is_a_valid_scenario(block: Block) -> None:
    assert parse_scenario(block.text, str(block)).steps


@pytest.mark.parametrize("kind", ARGS)
def test_every_kind_and_argument_is_in_an_example_that_is_run(kind: str) -> None:
    tier, name = kind.split(": ")
    of = ARGS[kind]
    steps = [model for one, model in READ if isinstance(one, BareScenario) is (tier == "bare") and model.kind == name]
    assert steps, f"no example has a step {name}"
    keys = {key for step in steps for key in step.args.model_fields_set}
    missing = {key for key in of.model_fields if key not in keys and not shown(of.__name__, key)}
    assert not missing


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"Args", "Step", "BareStep"}))
def test_every_key_is_in_an_example_that_is_run(name: str) -> None:
    missing = {key for key in MODELS[name].model_fields if (name, key) not in WRITTEN and not shown(name, key)}
    assert not missing


def test_keys_of_expect_fit_a_kind() -> None:
    assert {key for kind in KINDS for key in expect_keys(kind)} == set(StepExpect.model_fields)
    assert {key for kind in BARE_KINDS for key in bare_expect_keys(kind)} == set(BareExpect.model_fields)


def test_what_is_not_shown_is_not_shown() -> None:
    """A reason for something that an example has, or that there is not, is a line too many."""
    every = {(name, key) for name, model in MODELS.items() for key in model.model_fields}
    for name, key in NOT_SHOWN:
        if "*" not in (name, key) and (name, key) in every:
            assert (name, key) not in WRITTEN, (name, key)


def test_steps_that_count_say_what() -> None:
    for kind in KINDS:
        doc = KINDS[kind].__doc__ or ""
        assert ("counts" in expect_keys(kind)) is bool(re.search(r"[Cc]ounts?\b", doc)), kind


def test_every_error_that_the_examples_expect_exists() -> None:
    root = DOCS.parent
    files = [*(root / "usdm").glob("*errors.py"), *(root / "harness" / "agent").glob("*.py")]
    classes = set(re.findall(r"^class (\w+)", "".join(file.read_text() for file in files), re.MULTILINE))
    named = set(re.findall(r"error: (\w+)", "".join(block.text for block in EXAMPLES)))
    assert named
    assert named <= classes
