"""The JSON Schema of files below ``scenarios``, for editors. ``python -m harness.scenario.schema`` writes it anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from harness.scenario.args import Args
from harness.scenario.bare import BareScenario
from harness.scenario.bare_steps import BARE_KINDS, BareStep, bare_expect_keys
from harness.scenario.kind_step import KindStep
from harness.scenario.matrix_schema import matrix_definitions
from harness.scenario.model import Scenario
from harness.scenario.steps import KINDS, ORACLES, Step, expect_keys

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def _step(
    definitions: dict[str, Any], step: type[KindStep], expect_keys: Callable[[str], tuple[str, ...]]
) -> dict[str, Any]:
    """The schema of a step as it stands in a file: one key that names its kind, beside those that every step may have.

    Args:
        definitions: the schemas of all models.
        step: the model of a step.
        expect_keys: the keys of ``expect`` that fit a kind; where a step says what an oracle does, those of its
            ``expect`` too.
    """
    model = definitions[step.__name__]
    properties: dict[str, Any] = {}
    fits = []
    for kind, args in step.KINDS.items():
        what = definitions[args.__name__]["description"]
        properties[kind] = {"$ref": f"#/$defs/{args.__name__}", "description": what}
        keys = {"propertyNames": {"enum": list(expect_keys(kind))}}
        fitting: dict[str, Any] = {"expect": keys}
        fitting |= {oracle: {"properties": {"expect": keys}} for oracle in ORACLES if oracle in step.BESIDE}
        fits.append({"if": {"required": [kind]}, "then": {"properties": fitting}})
    properties |= {key: model["properties"][key] for key in step.BESIDE}
    return {
        "description": model["description"].splitlines()[0],
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "oneOf": [{"required": [kind]} for kind in step.KINDS],
        "allOf": fits,
    }


def _definitions(scenario: type[BaseModel], kinds: dict[str, type[Args]]) -> dict[str, Any]:
    models: list[type[BaseModel]] = [scenario, *kinds.values()]
    definitions: dict[str, Any]
    definitions = models_json_schema([(model, "validation") for model in models], by_alias=True)[1]["$defs"]
    definitions.pop("Args", None)
    return definitions


def json_schema() -> dict[str, Any]:
    """The JSON Schema of all files: which of them one is, its keys say.

    A matrix has ``matrix``, known failures have ``failures``, a scenario of the bare tier has ``tier: bare``.
    """
    definitions, bare = _definitions(Scenario, KINDS), _definitions(BareScenario, BARE_KINDS)
    definitions["Step"] = _step(definitions, Step, expect_keys)
    bare["BareStep"] = _step(bare, BareStep, bare_expect_keys)
    for name, definition in (*bare.items(), *matrix_definitions().items()):
        if definitions.setdefault(name, definition) != definition:
            raise ValueError(f"two models have the name {name}")
    definitions["Scenario"]["description"] = "A scenario of usdm-harness: a machine, steps, and what must be seen."
    definitions["BareScenario"]["description"] = "A bare scenario of usdm-harness: tables, steps, what must be seen."
    _clean(definitions)
    return {
        "$schema": _DIALECT,
        "if": {"required": ["matrix"]},
        "then": {"$ref": "#/$defs/MatrixModel"},
        "else": {
            "if": {"required": ["failures"]},
            "then": {"$ref": "#/$defs/KnownFailuresModel"},
            "else": {
                "if": {
                    "required": ["tier"],
                    "properties": {"tier": {"const": "bare", "description": "Which tier the file is of."}},
                },
                "then": {"$ref": "#/$defs/BareScenario"},
                "else": {"$ref": "#/$defs/Scenario"},
            },
        },
        "$defs": dict(sorted(definitions.items())),
    }


def _clean(schema: Any) -> None:
    """Take out what pydantic adds for programs: titles made of field names, and null for keys that can be left out."""
    if isinstance(schema, list):
        for item in schema:
            _clean(item)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("title"), str):
        del schema["title"]
    if "default" in schema and schema["default"] is None:
        del schema["default"]
    description = schema.get("description")
    if isinstance(description, str):
        schema["description"] = description.split("\n\n")[0]
    for item in schema.values():
        _clean(item)


def schema_text() -> str:
    """The schema as the text of ``scenarios/schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the schema to the file named, or to ``scenarios/schema.json`` of the working tree."""
    target = Path(arguments[0]) if arguments else Path(__file__).parents[2] / "scenarios" / "schema.json"
    target.write_text(schema_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
