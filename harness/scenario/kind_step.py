"""What the steps of both tiers have in common: one key names the kind, and the kind says what the arguments are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import SerializeAsAny, field_validator, model_validator

from harness.scenario.args import Args
from harness.scenario.base import Model
from harness.scenario.problems import suggest
from harness.scenario.values import refuse


class KindStep(Model):
    """A mapping with one key that names its kind, beside others that every step of the tier may have.

    Attributes:
        kind: the kind, e.g. ``dma_read``.
        args: its arguments, an instance of ``KINDS[kind]``.
        KINDS: every kind of step of the tier and the model of its arguments.
        BESIDE: the keys that may stand beside the kind.
        WHAT: what a kind is called in a message.
    """

    KINDS: ClassVar[Mapping[str, type[Args]]] = {}
    BESIDE: ClassVar[tuple[str, ...]] = ()
    WHAT: ClassVar[str] = "a kind of step"

    kind: str
    args: SerializeAsAny[Args]

    @classmethod
    def hint(cls, word: str) -> str:
        """What to say of a word that is no kind."""
        return suggest(word, list(cls.KINDS), "the kinds are")

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, data: Any) -> Any:
        """``{"open": {…}, "id": …}`` as it stands in a file becomes ``{"kind": "open", "args": {…}, "id": …}``."""
        if not isinstance(data, dict) or "kind" in data:
            return data
        kinds = [key for key in data if key in cls.KINDS]
        others = [str(key) for key in data if key not in (*cls.KINDS, *cls.BESIDE)]
        if not kinds and others:
            raise refuse(cls.WHAT, others[0], cls.hint(others[0]))
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            hint = "begin another step with '- '" if kinds else suggest("", list(cls.KINDS), "the kinds are")
            raise refuse("exactly one key that names the kind of step", found, hint, quote=False)
        return {"kind": kinds[0], "args": data[kinds[0]], **{key: data[key] for key in data if key not in kinds}}

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in cls.KINDS:
            raise refuse(cls.WHAT, value, cls.hint(value))
        return value

    @field_validator("args", mode="plain")
    @classmethod
    def _of_kind(cls, value: Any, info: Any) -> Args:
        model = cls.KINDS.get(info.data.get("kind", ""), Args)
        return value if type(value) is model else model.model_validate(value)
