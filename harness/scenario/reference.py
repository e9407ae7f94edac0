"""The reference in docs/steps: tables made from the models, so that nothing is said twice.

``python -m harness.scenario.reference`` writes them anew. A table stands between two markers of a page, which say what
it is of::

    <!-- reference: steps open close -->         each kind of step with its arguments; ``bare`` for the bare tier
    <!-- reference: keys Machine Device -->      the keys of models
    <!-- reference: expect Step -->              the keys of a step's ``expect``, and of which kinds; or ``Bare``
    <!-- reference: index -->                    every kind, and the page that has it
    <!-- end -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from harness.scenario import bare, bare_machine, bare_steps, bare_tables, expect, machine, model, values
from harness.scenario.args import Args
from harness.scenario.args_device import Piece, Place
from harness.scenario.bare_steps import BARE_KINDS, BareExpect, bare_expect_keys
from harness.scenario.expect import StepExpect
from harness.scenario.steps import KINDS, expect_keys

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"(<!-- reference: (\w+) ?([\w ]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_MODELS: Mapping[str, type[BaseModel]] = {
    name: found
    for module in (model, machine, expect, bare, bare_machine, bare_steps, bare_tables)
    for name, found in vars(module).items()
    if isinstance(found, type) and issubclass(found, BaseModel)
} | {"Place": Place, "Piece": Piece}

_LANGUAGES: Mapping[Callable[..., Any], str] = {
    values.parse_size: "size",
    values.parse_signed: "size, may be negative",
    values.parse_address: "address",
    values.parse_duration: "duration",
    values.parse_bdf: "PCI address",
    values.parse_name: "name",
    values.parse_requirement: "versions",
    values.parse_regex: "regular expression",
    values.parse_text: "text",
    values.parse_word: "word",
    values.parse_pattern: "`random`, `counter`, `zero` or a byte",
    values.parse_returns: "number, `nonzero` or `null`",
    values._class_name: "class of an error",
}
_PLAIN = {bool: "`true` or `false`", int: "number", float: "number", str: "text"}
_RANGED = "number from {} to {}"


def _value(annotation: Any, metadata: list[Any]) -> str:
    """What can be written there, in words."""
    for validator in metadata:
        if isinstance(validator, BeforeValidator | AfterValidator) and validator.func in _LANGUAGES:
            return _LANGUAGES[validator.func]
    if hasattr(annotation, "__metadata__"):
        inner, *rest = get_args(annotation)
        return _value(inner, _flat(rest))
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{str(one).lower() if isinstance(one, bool) else one}`" for one in inside)
    if origin in (Union, UnionType):
        return " or ".join(_value(one, metadata) for one in inside if one is not type(None))
    if origin is tuple:
        return f"list of: {_value(inside[0], [])}"
    if origin is dict:
        return f"mapping of names to: {_value(inside[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping" if annotation.__name__ not in ("Step", "BareStep") else "step"
    return _number(metadata) or _PLAIN.get(annotation, "value")


def _flat(metadata: list[Any]) -> list[Any]:
    """The metadata with that of ``Field(...)`` beside it."""
    return [inner for one in metadata for inner in ((one, *one.metadata) if isinstance(one, FieldInfo) else (one,))]


def _number(metadata: list[Any]) -> str:
    """The range of a number; empty when it has none."""
    low = next((one.ge for one in metadata if isinstance(one, annotated_types.Ge)), None)
    high = next((one.le for one in metadata if isinstance(one, annotated_types.Le)), None)
    below = next((one.lt for one in metadata if isinstance(one, annotated_types.Lt)), None)
    if high is None and isinstance(below, int):
        high = below - 1
    return "" if low is None or high is None else _RANGED.format(_shown(low), _shown(high))


def _shown(value: Any) -> str:
    """A default or a limit as it is written in a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value >= 4096:
        for unit, bits in (("G", 30), ("M", 20), ("K", 10)):
            if value % (1 << bits) == 0:
                return f"{value >> bits}{unit}"
    return str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    empty: tuple[object, ...] = (None, (), {})
    if field.default_factory is not None or field.default in empty:
        return ""
    return f"`{_shown(field.default)}`"


def keys(of: type[BaseModel]) -> str:
    """The table of a model's keys: name, what can be written there, default, meaning."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in of.model_fields.items():
        metadata = list(field.metadata)
        cells = (f"`{field.alias or name}`", _value(field.annotation, metadata), _default(field), field.description)
        rows.append("| " + " | ".join(" ".join(str(cell or "").split()) for cell in cells) + " |")
    return "\n".join(rows)


def _said(of: type[BaseModel]) -> str:
    """The docstring of a model, each paragraph on a line of its own, without reStructuredText."""
    paragraphs = [" ".join(part.split()) for part in (of.__doc__ or "").split("\n\n")]
    return "\n\n".join(paragraphs).replace("``", "`")


def step(kind: str, of: type[Args], expects: tuple[str, ...]) -> str:
    """The section of a kind of step: what it does, its arguments, what it can be expected to show."""
    parts = [f"### `{kind}`", _said(of)]
    if of.model_fields:
        parts.append(keys(of))
    else:
        parts.append(f"No arguments: `{kind}: {{}}`.")
    if expects:
        parts.append("`expect`: " + ", ".join(f"`{key}`" for key in expects))
    return "\n\n".join(parts)


def _expectations(of: type[BaseModel], kinds: Mapping[str, Any], keys_of: Callable[[str], tuple[str, ...]]) -> str:
    rows = ["| key | value | of which steps | meaning |", "|---|---|---|---|"]
    for name, field in of.model_fields.items():
        having = [kind for kind in kinds if name in keys_of(kind)]
        lacking = [kind for kind in kinds if kind not in having]
        shown = ", ".join(f"`{kind}`" for kind in (having if len(having) <= len(lacking) else lacking))
        if len(having) > len(lacking):
            shown = f"all but {shown}" if lacking else "all"
        cells = (f"`{name}`", _value(field.annotation, list(field.metadata)), shown, field.description or "")
        rows.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    return "\n".join(rows)


def pages(folder: Path = DOCS) -> dict[tuple[str, str], str]:
    """The page of each kind of step, by ``steps`` or ``bare`` and the kind."""
    found: dict[tuple[str, str], str] = {}
    for page in sorted((folder / "steps").glob("*.md")):
        for _, what, names, *_ in _BLOCK.findall(page.read_text(encoding="utf-8")):
            if what in ("steps", "bare"):
                found |= {(what, name): page.name for name in names.split()}
    return found


def _index() -> str:
    rows = ["| step | page | what it does |", "|---|---|---|"]
    home = pages()
    for tier, kinds in (("steps", KINDS), ("bare", BARE_KINDS)):
        for kind, of in kinds.items():
            page = home[tier, kind]
            first = _said(of).split("\n\n")[0]
            rows.append(f"| [`{kind}`]({page}#{kind}) | {page.removesuffix('.md')} | {first} |")
    return "\n".join(rows)


def _block(what: str, names: str) -> str:
    if what == "index":
        return _index()
    if what == "expect":
        if names.strip() == "Step":
            return _expectations(StepExpect, KINDS, expect_keys)
        return _expectations(BareExpect, BARE_KINDS, bare_expect_keys)
    if what == "keys":
        titled = [f"### Keys of `{name}`\n\n{_said(_MODELS[name])}\n\n{keys(_MODELS[name])}" for name in names.split()]
        return "\n\n".join(titled)
    kinds, keys_of = (KINDS, expect_keys) if what == "steps" else (BARE_KINDS, bare_expect_keys)
    return "\n\n".join(step(kind, kinds[kind], keys_of(kind)) for kind in names.split())


def render(text: str) -> str:
    """A page with every table made anew.

    Raises:
        KeyError: a marker names a kind of step or a model that there is not.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{_block(found[2], found[3])}\n{found[5]}", text)


def main() -> int:
    """Write the tables of all pages of docs/steps anew."""
    for page in sorted((DOCS / "steps").glob("*.md")):
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
