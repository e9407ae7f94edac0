"""What the files of the bare tier are made of, for messages about what is wrong with them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from harness.scenario.bare import BareScenario
from harness.scenario.bare_steps import BARE_KINDS, BareStep
from harness.scenario.base import Model
from harness.scenario.explain import Grammar
from harness.scenario.yaml_marks import Path_


def _model_at(path: Path_) -> type[Model] | None:
    """The model of the mapping at a path of the file, found by the fields' types."""
    here: Any = BareScenario
    for part in path:
        here = _inside(here, part)
        if here is None:
            return None
    return here if isinstance(here, type) and issubclass(here, Model) else None


def _inside(kind: Any, part: int | str) -> Any:
    """The type of what stands at a key or a position of a value of a type; None when nothing does."""
    if isinstance(kind, type) and issubclass(kind, BareStep) and part in BARE_KINDS:
        return BARE_KINDS[str(part)]
    if isinstance(kind, type) and issubclass(kind, Model):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                return _plain(field.annotation)
        return None
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (dict, Mapping):
        return _plain(arguments[1])
    return _plain(arguments[0]) if origin is tuple else None


def _plain(kind: Any) -> Any:
    """A type without ``Annotated`` and without ``None``."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(kind) if one is not type(None)]
        return _plain(rest[0]) if len(rest) == 1 else None
    return kind


BARE = Grammar(BareStep, _model_at)
"""The files of the bare tier."""
