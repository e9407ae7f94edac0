"""Pydantic's errors as problems with a place, in the words of scenario files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.scenario.base import Model
from harness.scenario.expect import (
    FaultExpect,
    FaultsOnKernel,
    FaultsOnLibrary,
    KernelDeviation,
    LibraryDeviation,
    ScenarioExpect,
    StepExpect,
)
from harness.scenario.kind_step import KindStep
from harness.scenario.machine import Device, Machine, Needs
from harness.scenario.model import Scenario
from harness.scenario.problems import Problem, suggest
from harness.scenario.steps import KINDS, NESTED, Step
from harness.scenario.values import show
from harness.scenario.yaml_marks import REFUSED, Document, Path_

_MISSING: Any = object()
_DEVIATIONS: dict[Path_, type[Model]] = {("libusdm",): LibraryDeviation, ("kernel",): KernelDeviation}
_EXPECTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_type": "a word or text",
    "string_unicode": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "too_short": "at least one item",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the files of a tier are made of.

    Args:
        step: the model of a step, which knows its kinds.
        model_at: the model of the mapping at a path of the file, or None.
        whole: what the whole file is called.
    """

    step: type[KindStep]
    model_at: Callable[[Path_], type[Model] | None]
    whole: str = "the scenario"


def file_path(data: Any, location: tuple[int | str, ...], kinds: Iterable[str] = KINDS) -> Path_:
    """Where a place in the models is in the file: the models' ``args`` has the step's kind as its key there."""
    path: list[int | str] = []
    for part in location:
        here = value_at(data, tuple(path))
        if part == "args" and isinstance(here, Mapping):
            part = next((key for key in here if key in kinds), part)
        elif part == "[key]":
            break
        path.append(part)
    return tuple(path)


def value_at(data: Any, path: Path_) -> Any:
    """What stands at a path, or a value that equals nothing."""
    for part in path:
        try:
            data = data[part] if isinstance(data, dict) else data[int(part)] if isinstance(data, tuple) else _MISSING
        except (KeyError, IndexError, ValueError):
            return _MISSING
    return data


def _model_at(path: Path_) -> type[Model] | None:
    """The model of the mapping at a path."""
    fixed: dict[Path_, type[Model]] = {
        (): Scenario,
        ("machine",): Machine,
        ("needs",): Needs,
        ("expect",): ScenarioExpect,
        ("expect", "libusdm"): FaultsOnLibrary,
        ("expect", "kernel"): FaultsOnKernel,
    }
    if path in fixed:
        return fixed[path]
    if path[:2] == ("machine", "devices") and len(path) == 3:
        return Device
    if path[0] == "expect" and path[-2:-1] == ("faults",):
        return FaultExpect
    if path[0] != "steps" or len(path) < 2:
        return None
    while path[2:3] and path[2] in NESTED and path[3:4] == ("steps",) and len(path) > 4:
        path = path[3:]
    rest = path[2:]
    if not rest:
        return Step
    if rest in _DEVIATIONS:
        return _DEVIATIONS[rest]
    if rest == ("expect",) or (rest[:-1] in _DEVIATIONS and rest[-1] == "expect"):
        return StepExpect
    return KINDS.get(str(rest[0])) if len(rest) == 1 else None


GUEST = Grammar(Step, _model_at)
"""The files of guests."""


def known_keys(model: type[BaseModel], grammar: Grammar = GUEST) -> list[str]:
    """The keys that a mapping of the model may have in a file."""
    if model is grammar.step:
        return [*grammar.step.KINDS, *grammar.step.BESIDE]
    return [field.alias or name for name, field in model.model_fields.items()]


def _what(path: Path_, grammar: Grammar) -> str:
    """The mapping at a path, in words."""
    if not path:
        return grammar.whole
    last = path[-1]
    if isinstance(last, int):
        return "the step" if path[-2] == "steps" else f"item {last + 1} of {path[-2]}"
    return show(last)


def _missing(document: Document, path: Path_, grammar: Grammar) -> tuple[tuple[int, int], str, str]:
    parent, key = path[:-1], str(path[-1])
    model = grammar.model_at(parent)
    description = None
    for name, field in model.model_fields.items() if model else ():
        if key in (name, field.alias):
            description = field.description
    inside = isinstance(parent[-1] if parent else None, str)
    hint = f"add '{key}: ...'" + (f": {description}" if description else "")
    return document.place(parent, key=inside), f"expected '{key}' in {_what(parent, grammar)}, found none", hint


def _extra(document: Document, path: Path_, grammar: Grammar) -> tuple[tuple[int, int], str, str | None]:
    parent, key = path[:-1], str(path[-1])
    model = grammar.model_at(parent)
    hint = suggest(key, known_keys(model, grammar), "its keys are") if model else None
    return document.place(path, key=True), f"expected a known key in {_what(parent, grammar)}, found {show(key)}", hint


def _hint(path: Path_, kind: str, grammar: Grammar) -> str | None:
    """The keys of the mapping that should be at a path, or the description of the field."""
    wanted = grammar.model_at(path) if kind == "model_type" else None
    if wanted is not None:
        return suggest("", known_keys(wanted, grammar), "its keys are")
    model = grammar.model_at(path[:-1]) if path else None
    for name, field in model.model_fields.items() if model else ():
        if path[-1] in (name, field.alias):
            return field.description
    return None


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    limits = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("more than", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("less than", "lt"),
    }
    if kind in limits:
        words, key = limits[kind]
        return f"a number of {words} {context[key]}"
    return _EXPECTED.get(kind, "")


def _explain(document: Document, file: Path, error: Mapping[str, Any], grammar: Grammar) -> Problem | None:
    kind, location = str(error["type"]), tuple(error["loc"])
    path = file_path(document.data, location, grammar.step.KINDS)
    value = value_at(document.data, path)
    if value is REFUSED:
        return None
    if kind == "missing":
        place, message, hint = _missing(document, path, grammar)
        return Problem(file, *place, message, hint)
    if kind == "extra_forbidden":
        place, message, extra = _extra(document, path, grammar)
        return Problem(file, *place, message, extra)
    if kind == "too_short" and value:
        return None  # its items have been reported
    context = error.get("ctx") or {}
    place = document.place(path, key="[key]" in location)
    if kind == "scenario_value":
        message = str(error["msg"])
        return Problem(file, *place, message, str(context["hint"]))
    expected = _expected(kind, context)
    found = "nothing" if value is None else show(value)
    message = f"expected {expected}, found {found}" if expected else f"{error['msg']}, found {found}"
    return Problem(file, *place, message, _hint(path, kind, grammar))


def explain(document: Document, file: Path, error: ValidationError, grammar: Grammar = GUEST) -> Iterator[Problem]:
    """The problems that a validation of the document's data met.

    Args:
        document: the data and its places.
        file: its name.
        error: what the models say.
        grammar: what the file is made of.
    """
    for one in error.errors(include_url=False, include_input=False):
        problem = _explain(document, file, one, grammar)
        if problem is not None:
            yield problem
