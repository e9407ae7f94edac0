"""Whatever stands in a file: a scenario or a ScenarioError with a place, nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.paths import scenarios_dir
from harness.scenario import KINDS, Scenario, ScenarioError, find_scenarios, load_scenario, parse_scenario

FILE = Path("fuzz.yaml")

KEYS = sorted(
    {
        *(
            "title",
            "source",
            "machine",
            "steps",
            "expect",
            "id",
            "faults",
            "kernel_log",
            "needs",
            "libusdm",
            "defect",
            "versions",
            "timeout",
            "devices",
            "at",
        ),
        *(field.alias or name for model in KINDS.values() for name, field in model.model_fields.items()),
        *KINDS,
    }
)
MEANINGFUL = ["edu", "edu0", "02:00.0", "4K", "-4K", "a", "b", "random", "null", "~", "yes", "010", "0x10", "1e3", "-1"]
SYNTAX = [
    "&a",
    "*a",
    "<<",
    "!!int 1",
    "? ",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\n",
    "\n  ",
    "\n    - ",
    "'",
    '"',
    "|",
    ">",
]
DOCUMENTS = ["%YAML 1.1\n", "---\n", "...\n", "#", "\t", "\\"]
WORDS = st.sampled_from([*KEYS, *MEANINGFUL, *SYNTAX, *DOCUMENTS])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.sampled_from([*KEYS, *MEANINGFUL]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)
SHIPPED = [file.read_text() for file in find_scenarios([scenarios_dir()])]


def attempt(load: Callable[[], Scenario]) -> tuple[Scenario | None, ScenarioError | None]:
    try:
        return load(), None
    except ScenarioError as error:
        return None, error


def judged(text: str) -> Scenario | None:
    lines = text.count("\n") + text.count("\r") + text.count("\x85") + text.count("\u2028") + text.count("\u2029") + 1
    scenario, error = attempt(lambda: parse_scenario(text, FILE))
    for problem in error.problems if error else ():
        assert 1 <= problem.line <= lines
        assert problem.column >= 1
        assert problem.message.startswith("expected ")
        assert "\n" not in str(problem)
    assert (scenario is None) == bool(error and error.problems)
    str(error).encode()
    return scenario


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("%YAML 1." + "1" * 5000 + "\n---\na")
@example('"\\UFFFFFFFF"')
@example('title: "\\ud800"')
@example('"\\ud800": 1')
@example("!<> a")
@example("%TAG ! a\n%TAG ! b\n---\n!x a")
@example("[" * 100_000)
@example("{" * 2000)
@example("- " * 2000)
@example("a: |999999999\n b")
@example("? ? ? ? ? a")
@example("\ufeff\ufeffa: 1")
@example("expect: {faults: [{device: \"\\ud800\"}], kernel_log: ['(?P<a>(?P=b))', '(', '" + "(" * 500 + "']}")
def test_any_text(text: str) -> None:
    judged(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=40).map("".join))
def test_text_of_words_that_mean_something(text: str) -> None:
    judged(text)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["title", "source", "machine", "steps", "expect", "needs", "timeout"]), VALUES))
def test_any_data(data: dict[str, Any]) -> None:
    judged(yaml.safe_dump(data, allow_unicode=True))


KNOWN = st.fixed_dictionaries({}, optional={"defect": VALUES, "versions": VALUES, "expect": VALUES}) | VALUES
STEPS = st.lists(
    st.one_of(
        [
            st.fixed_dictionaries(
                {kind: st.dictionaries(st.sampled_from([*(f.alias or n for n, f in fields.items()), "x"]), VALUES)},
                optional={"expect": VALUES, "id": VALUES, "libusdm": KNOWN},
            )
            for kind, fields in ((kind, model.model_fields) for kind, model in KINDS.items())
        ]
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_any_steps(steps: list[Any]) -> None:
    head = {"title": "t", "source": "s", "machine": {"devices": {"edu0": {"model": "edu", "at": "02:00.0"}}}}
    scenario = judged(yaml.safe_dump({**head, "steps": steps}))
    assert scenario is None or len(scenario.steps) == len(steps)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        _, error = attempt(lambda: load_scenario(file.name))
    assert error is None or error.problems


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_shipped_scenarios_with_a_slip(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(SHIPPED))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    judged(text[:start] + data.draw(WORDS | st.text(max_size=3)) + text[end:])
