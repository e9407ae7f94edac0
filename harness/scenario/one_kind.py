"""A step as it stands in a file: a mapping with one key that names its kind, beside others that every step may have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from harness.scenario.problems import suggest
from harness.scenario.values import refuse


def one_kind(data: Any, kinds: Collection[str], beside: Collection[str], what: str, hint: Callable[[str], str]) -> Any:
    """``{"open": {…}, "id": …}`` becomes ``{"kind": "open", "args": {…}, "id": …}``; anything else stays as it is.

    Args:
        data: what stands in the file.
        kinds: the kinds of steps.
        beside: the keys that stand beside a kind.
        what: what a kind is called in a message, e.g. ``a kind of step``.
        hint: what to say of a word that is no kind.

    Raises:
        PydanticCustomError: there is not exactly one key that names a kind.
    """
    if not isinstance(data, dict) or "kind" in data:
        return data
    found = [key for key in data if key in kinds]
    others = [str(key) for key in data if key not in kinds and key not in beside]
    if not found and others:
        raise refuse(what, others[0], hint(others[0]))
    if len(found) != 1:
        names = " and ".join(found) or "none"
        remedy = "begin another step with '- '" if found else suggest("", list(kinds), "the kinds are")
        raise refuse("exactly one key that names the kind of step", names, remedy, quote=False)
    return {"kind": found[0], "args": data[found[0]], **{key: data[key] for key in data if key not in found}}
