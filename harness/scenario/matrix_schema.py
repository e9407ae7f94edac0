"""The part of the JSON Schema that is about matrices and known failures: what an editor knows of axes."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from harness.qualified.records import AXES
from harness.scenario.known_failures import KnownFailuresModel
from harness.scenario.matrix import NUMBERS, VALUES, MatrixModel

_VALUES, _VALUE = "AxisValues", "AxisValue"
# Where a file has values of axes: a model, its key, and whether the key may have lists of them.
_HOLDERS = (
    ("MatrixModel", "axes", _VALUES),
    ("SelectionModel", "axes", _VALUES),
    ("ExclusionModel", "when", _VALUES),
    ("ExpectationModel", "when", _VALUES),
    ("KnownFailureModel", "when", _VALUES),
    ("InclusionModel", "at", _VALUE),
)


def matrix_definitions() -> dict[str, Any]:
    """The definitions of a matrix and of a file of known failures, by the names of their models.

    What an expectation replaces is described by ``ScenarioExpect`` and ``StepExpect``, which scenario files define.
    """
    definitions: dict[str, Any]
    models = models_json_schema([(MatrixModel, "validation"), (KnownFailuresModel, "validation")], by_alias=True)
    definitions = models[1]["$defs"]
    for model, key, values in _HOLDERS:
        _refer(definitions, model, key, values)
    _refer(definitions, "ExpectationModel", "expect", "ScenarioExpect")
    steps = definitions["ExpectationModel"]["properties"]["steps"]
    steps["additionalProperties"] = {"$ref": "#/$defs/StepExpect"}
    definitions[_VALUE] = _axes("Axis to value.", lists=False)
    definitions[_VALUES] = _axes("Axis to a value or a list of them.", lists=True)
    return definitions


def _refer(definitions: dict[str, Any], model: str, key: str, to: str) -> None:
    properties = definitions[model]["properties"]
    properties[key] = {"$ref": f"#/$defs/{to}", "description": properties[key]["description"]}


def _axes(description: str, *, lists: bool) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "properties": {axis: _axis(axis, lists=lists) for axis in AXES},
    }


def _axis(axis: str, *, lists: bool) -> dict[str, Any]:
    if axis in NUMBERS:
        allowed = NUMBERS[axis]
        value = {"type": "integer", "minimum": allowed[0], "maximum": allowed[-1]}
        says = f"A number from {allowed[0]} to {allowed[-1]}."
    else:
        value = {"enum": list(VALUES[axis])}
        says = f"One of {', '.join(VALUES[axis])}."
    if not lists:
        return {"description": says, **value}
    several = {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}
    return {"description": says.replace("One", "One or several") if axis in VALUES else says, "anyOf": [value, several]}
