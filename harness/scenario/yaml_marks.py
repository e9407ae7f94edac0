"""YAML text to plain data with the place of each value, in a small and unambiguous part of YAML.

What stands in a scenario shall mean one thing to every reader. So anchors, aliases, merge keys, tags and second
documents are refused, and so are the plain words and numbers that YAML 1.1 and YAML 1.2 read differently (``on``,
``010``). Without aliases the data is never larger than the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from harness.scenario.problems import Problem
from harness.scenario.values import show

MAX_BYTES = 256 << 10
"""Files beyond this size are no scenarios."""

_MAX_DEPTH = 40

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_OLD_BOOLEAN = re.compile(r"y|Y|n|N|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_OCTAL = re.compile(r"[-+]?0o?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")
_MAX_DIGITS = 40

Path_ = tuple[str | int, ...]
"""Keys and positions from the top of the file to a value."""


class _Refused:
    """Stands for a value that has been reported already."""

    def __repr__(self) -> str:
        return "REFUSED"


REFUSED: Any = _Refused()
"""Stands in the data for a value that has been reported already; nothing more is to be said about it."""


@dataclass(slots=True)
class Document:
    """What a file holds.

    Attributes:
        data: mappings, tuples, strings, integers, floats, booleans, None and `REFUSED`.
        values: the place (line, column) of each value.
        keys: the place of each key, by the path of its value.
        problems: what is wrong with the text itself.
    """

    data: Any = None
    values: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path_, *, key: bool = False) -> tuple[int, int]:
        """Line and column of the value at a path, or of the nearest thing around it; with ``key``, of its key."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, (1, 1))


_BEGINS: Final = {
    "scenario": ("a scenario", "begins with 'title: ...'"),
    "matrix": ("a matrix", "begins with 'matrix: ...'"),
    "known failures": ("known failures", "begin with 'failures:'"),
}


class _Stop(Exception):
    """Reading on makes no sense."""


def read_document(text: str, file: Path, *, numbers: bool = False, what: str = "scenario") -> Document:
    """Read YAML; whatever is wrong with it goes to the document's problems.

    Args:
        text: the file's text.
        file: its name, for the problems.
        numbers: whether a key may be a whole number without quotes; it is kept as it is written.
        what: what the file should be: ``scenario``, ``matrix``, ``known failures``.
    """
    # libyaml's parser is ten times as fast, and PyYAML's own says better what is wrong: so it reads what has problems.
    for loader in (getattr(yaml, "CSafeLoader", None), yaml.SafeLoader):
        if loader is None:
            continue
        reader = _Reader(file, loader, numbers, what)
        try:
            reader.read(text)
        except _Stop:
            reader.document.data = REFUSED
        if not reader.document.problems:
            break
    return reader.document


class _Reader:
    def __init__(self, file: Path, loader: Any, numbers: bool = False, what: str = "scenario") -> None:
        self._what = what
        self.document = Document()
        self._file = file
        self._keys = (str, int) if numbers else (str,)
        self._new_loader = loader
        self._loader: Any = None

    def _problem(self, place: tuple[int, int], message: str, hint: str | None = None) -> None:
        self.document.problems.append(Problem(self._file, *place, message, hint))

    def _next(self) -> Any:
        """The next event of the parser."""
        try:
            return self._loader.get_event()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = _place(mark) if mark else (1, 1)
            said = "; ".join(part for part in (error.context, error.problem) if part)
            hint = "indent with spaces, not with tabs" if "'\\t'" in said else "check indentation, quotes and brackets"
            self._problem(place, f"expected YAML, found a mistake: {_one_line(said)}", hint)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            # Not all numbers and escapes that the parser takes for such can be converted by it.
            place = _place(self._loader.get_mark()) if hasattr(self._loader, "get_mark") else (1, 1)
            self._problem(place, f"expected YAML, found a mistake: {_one_line(str(error))}")
        raise _Stop

    def read(self, text: str) -> None:
        try:
            self._loader = self._new_loader(text)
        except yaml.reader.ReaderError as error:
            # libyaml counts bytes.
            position = min(error.position, len(text) - 1)
            before = text[:position]
            place = (before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
            message = f"expected text, found the control character U+{ord(text[position]):04X}"
            self._problem(place, message, f"remove it; {self._what} files are plain UTF-8 text")
            raise _Stop from None
        self._next()  # the start of the stream
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            wanted, begins = _BEGINS[self._what]
            self._problem((1, 1), f"expected {wanted}, found an empty file", f"{wanted} {begins}")
            raise _Stop
        self.document.data = self._value(self._next(), (), 0)
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            self._problem(
                _place(event.start_mark),
                "expected one document, found a second",
                "write one file for each" if self._what != "scenario" else "write one file per scenario",
            )

    def _value(self, event: Any, path: Path_, depth: int) -> Any:
        place = self.document.values[path] = _place(event.start_mark)
        if depth > _MAX_DEPTH:
            self._problem(place, f"expected at most {_MAX_DEPTH} levels, found more", "a scenario needs about ten")
            raise _Stop
        if isinstance(event, yaml.AliasEvent):
            self._problem(
                place, f"expected a value, found the alias {show(f'*{event.anchor}')}", "write the value again"
            )
            return REFUSED
        if event.anchor is not None:
            self._problem(place, f"expected a value, found the anchor {show(f'&{event.anchor}')}", "remove the anchor")
        if event.tag is not None:
            hint = "remove the tag; write a string in quotes"
            self._problem(place, f"expected a value, found the tag {show(event.tag)}", hint)
        if isinstance(event, yaml.ScalarEvent):
            if event.tag is not None:
                return REFUSED
            return event.value if event.style else self._plain(event.value, place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path, depth)
        return self._mapping(path, depth)

    def _sequence(self, path: Path_, depth: int) -> tuple[Any, ...]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), depth + 1))
        return tuple(items)

    def _mapping(self, path: Path_, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            place = _place(event.start_mark)
            key = self._key(event, depth)
            at = (*path, key)
            if key in found:
                first = self.document.keys[at][0]
                message = f"expected each key once, found {show(key)} again"
                self._problem(place, message, f"the first one is in line {first}")
                self._skip()
                continue
            self.document.keys[at] = place
            found[key] = self._value(self._next(), at, depth + 1)
        return {key: value for key, value in found.items() if not key.startswith("\0")}

    def _key(self, event: Any, depth: int) -> str:
        """The key of an event; one that begins with NUL stands for a refused one."""
        place = _place(event.start_mark)
        before = len(self.document.problems)
        if not isinstance(event, yaml.ScalarEvent):
            self._value(event, ("\0key",), depth + 1)
            if len(self.document.problems) == before:
                self._problem(place, "expected a word as a key, found a list or a mapping", "write 'key: value'")
        elif event.anchor is not None or event.tag is not None:
            self._problem(place, "expected a word as a key, found an anchor or a tag", "remove it")
        elif event.value == "<<" and not event.style:
            self._problem(place, "expected a key, found the merge key '<<'", "write the keys out")
        elif not event.style and type(self._plain(event.value, place)) not in self._keys:
            if len(self.document.problems) == before:
                self._problem(
                    place, f"expected a word as a key, found {event.value or 'nothing'}", "write 'key: value'"
                )
        elif event.value.startswith("\0"):
            self._problem(place, "expected a word as a key, found a control character", "remove it")
        else:
            return str(event.value)
        return f"\0{place}"

    def _skip(self) -> None:
        """Leave the next value out, but not what is wrong with it."""
        self._value(self._next(), ("\0skipped",), 1)

    def _plain(self, text: str, place: tuple[int, int]) -> Any:
        """What a word without quotes means."""
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text):
            return True
        if _FALSE.fullmatch(text):
            return False
        if _OLD_BOOLEAN.fullmatch(text):
            hint = f"write true or false for a truth value, or '{text}' in quotes for a word"
            self._problem(place, f"expected a value with one meaning, found {text}", hint)
            return REFUSED
        numeric = _HEXADECIMAL.fullmatch(text) or _FLOAT.fullmatch(text)
        if numeric and len(text) > _MAX_DIGITS:
            self._problem(place, f"expected a number of at most {_MAX_DIGITS} digits, found {len(text)}")
            return REFUSED
        if _HEXADECIMAL.fullmatch(text):
            return int(text, 16)
        if _INTEGER.fullmatch(text):
            return int(text)
        if _OCTAL.fullmatch(text):
            digits = text.lstrip("+-0o") or "0"
            hint = f"YAML versions read it differently; write {digits}, 0x{digits}, or quotes around it"
            self._problem(place, f"expected a number with one meaning, found {_one_line(text)}", hint)
            return REFUSED
        if _FLOAT.fullmatch(text):
            return float(text)
        return text


def _place(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())
