"""The small languages inside a scenario's values: sizes, durations, PCI addresses, names, versions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_U64 = (1 << 64) - 1
PATTERNS = ("random", "counter", "zero")

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(-?)([0-9]+|0x[0-9a-fA-F]+) ?([KMG]?)(?:iB)?")
_SIZE_PATTERN = r"^([0-9]+|0x[0-9a-fA-F]+) ?([KMG](iB)?)?$"
_SIZE_HINT = "write bytes as a number, or a number with K, M or G (powers of 1024): 4096, 64K, 2M, 1G"
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_HINT = "write seconds as a number, or a number with ms, s, m or h: 60, 60s, 2m"
_BDF = re.compile(r"([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_REQUIREMENT = re.compile(r"(>=|<=|==|>|<) ?([0-9]{1,6}(?:\.[0-9]{1,6}){0,3})")
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def show(value: object) -> str:
    """A value as it is quoted in a message: short, and without characters that disturb a terminal."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(expected: str, found: object, hint: str, *, quote: bool = True) -> PydanticCustomError:
    """The error of a value that is not what it should be, with a hint for people.

    Args:
        expected: what it should be.
        found: the value, or words about it.
        hint: what to write instead.
        quote: False when ``found`` is words.
    """
    return PydanticCustomError(
        "scenario_value",
        "expected {expected}, found {found}",
        {"expected": expected, "found": show(found) if quote else str(found), "hint": hint},
    )


def _parse_bytes(value: object, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) < 40 else None
    if not match:
        raise refuse(what, value, _SIZE_HINT)
    number = int(match[2], 16) if match[2].startswith("0x") else int(match[2])
    return (-number if match[1] else number) * _UNITS[match[3]]


def parse_size(value: object) -> int:
    """Read a number of bytes: an integer, or a string with a unit.

    Raises:
        PydanticCustomError: it is none, is negative, or needs more than 64 bits.
    """
    size = _parse_bytes(value, "a size")
    if not 0 <= size <= MAX_U64:
        raise refuse("a size from 0 to 2^64-1", value, _SIZE_HINT)
    return size


def parse_signed(value: object) -> int:
    """Read an offset that may be negative (``-4K`` names the page before); errors as `parse_size`."""
    size = _parse_bytes(value, "an offset")
    if not -(1 << 63) <= size < 1 << 63:
        raise refuse("an offset from -2^63 to 2^63-1", value, _SIZE_HINT)
    return size


def parse_address(value: object) -> int:
    """Read an address: an integer of 64 bits.

    Raises:
        PydanticCustomError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_U64:
        raise refuse("an address from 0 to 2^64-1", value, "write it as a number without quotes: 0x900000")
    return value


def parse_duration(value: object) -> float:
    """Read a duration in seconds: a number, or a string with a unit.

    Raises:
        PydanticCustomError: it is none, or not from 1 second to 24 hours.
    """
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match:
        seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(min(value, MAX_U64))
    else:
        raise refuse("a duration", value, _DURATION_HINT)
    if not 1 <= seconds <= 86400:
        raise refuse("a duration from 1s to 24h", value, _DURATION_HINT)
    return seconds


def parse_bdf(value: object) -> str:
    """Read a PCI address, ``bb:dd.f`` in lower case hexadecimal digits.

    Raises:
        PydanticCustomError: it is none.
    """
    match = _BDF.fullmatch(value) if isinstance(value, str) else None
    if not match or int(match[2], 16) > 0x1F:
        hint = "two hexadecimal digits for the bus, two for the device (00 to 1f), one for the function: 02:01.2"
        raise refuse("a PCI address (bus:device.function)", value, hint)
    return match[0]


def split_bdf(bdf: str) -> tuple[int, int, int]:
    """(bus, device, function) of a PCI address that `parse_bdf` let pass."""
    bus, rest = bdf.split(":")
    device, function = rest.split(".")
    return int(bus, 16), int(device, 16), int(function, 16)


def requester_id(bdf: str) -> int:
    """The requester ID of 16 bits of a PCI address that `parse_bdf` let pass."""
    bus, device, function = split_bdf(bdf)
    return bus << 8 | device << 3 | function


class PlacedDevice(Protocol):
    """A device as both tiers have them: with an address of its own, or a VF with a PF and a number."""

    @property
    def at(self) -> str | None:
        """Its own address, or None for a VF."""

    @property
    def of(self) -> str | None:
        """A VF's PF, by its name."""

    @property
    def number(self) -> int | None:
        """Which VF, from 1."""


def address_of(name: str, devices: Mapping[str, PlacedDevice]) -> str:
    """Where a device is, e.g. ``02:01.2`` for VF 10 of a PF at ``02:00.0``.

    A VF's requester ID is its PF's + First VF Offset + (number - 1) * VF Stride; of QEMU's nvme both are 1.

    Raises:
        KeyError: there is no such device, or a VF's PF is none.
    """
    device = devices[name]
    if device.of is None:
        return str(device.at)
    requester = requester_id(str(devices[device.of].at)) + (device.number or 0)
    return f"{requester >> 8 & 0xFF:02x}:{requester >> 3 & 0x1F:02x}.{requester & 7}"


def is_name(value: object) -> bool:
    """Whether a value can be a name that steps use."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def parse_name(value: object) -> str:
    """Read a name that steps use for a device, a buffer or a step.

    Raises:
        PydanticCustomError: it is none.
    """
    if not is_name(value):
        raise refuse("a name", value, "up to 32 letters, digits and underscores, not beginning with a digit")
    return str(value)


def version_tuple(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, without trailing zeros: ``11.1.3 (Debian)`` is (11, 1, 3)."""
    match = _VERSION.search(version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def parse_requirement(value: object) -> str:
    """Read comparisons with a version, separated by commas: ``>=10.0`` or ``>=10.0, <11``.

    Raises:
        PydanticCustomError: it is none.
    """
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else []
    if not parts or not all(_REQUIREMENT.fullmatch(part) for part in parts):
        raise refuse("a comparison with a version", value, 'write it in quotes, for example ">=10.0" or ">=10.0, <11"')
    return ", ".join(parts)


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version meets every comparison of a requirement that `parse_requirement` let pass."""
    have = version_tuple(version)
    for part in requirement.split(","):
        match = _REQUIREMENT.fullmatch(part.strip())
        if not match:
            raise ValueError(f"{part!r} is no comparison with a version")
        if not _COMPARISONS[match[1]](have, version_tuple(match[2])):
            return False
    return True


def parse_regex(value: object) -> str:
    """Read a regular expression of Python's ``re``.

    Raises:
        PydanticCustomError: it is no string, is empty, or does not compile.
    """
    if not isinstance(value, str) or not value:
        raise refuse("a regular expression", value, "write it in single quotes")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise refuse("a regular expression", value, f"{error}; write \\( for a bracket that is meant as such") from None
    return value


def parse_text(value: object) -> str:
    """Read a text for people, with its white space made even.

    Raises:
        PydanticCustomError: it is no string, or says nothing.
    """
    if not isinstance(value, str) or not value.strip():
        raise refuse("a text", value, "write a sentence, in quotes when it has a colon")
    return " ".join(value.split())


def parse_word(value: object) -> str:
    """Read one word of a command line.

    Raises:
        PydanticCustomError: it is no string of printable ASCII characters without spaces.
    """
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,200}", value):
        raise refuse("one word of the kernel's command line", value, "one list item per word, without spaces")
    return value


def _bytes_schema(minimum: int, pattern: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "integer", "minimum": minimum}, {"type": "string", "pattern": pattern}]}


Size = Annotated[int, BeforeValidator(parse_size), WithJsonSchema(_bytes_schema(0, _SIZE_PATTERN))]
"""Bytes, from 0."""

SignedSize = Annotated[
    int, BeforeValidator(parse_signed), WithJsonSchema(_bytes_schema(-(1 << 63), "^-?" + _SIZE_PATTERN[1:]))
]
"""Bytes, negative for a place before."""

Address = Annotated[int, BeforeValidator(parse_address), WithJsonSchema({"type": "integer", "minimum": 0})]
"""An IOVA or a virtual address."""

Seconds = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 1}, {"type": "string", "pattern": r"^[0-9.]+ ?(ms|s|m|h)$"}]}
    ),
]
"""A duration."""

Bdf = Annotated[
    str,
    BeforeValidator(parse_bdf),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$"}),
]
"""A PCI address."""

Name = Annotated[
    str, BeforeValidator(parse_name), WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_]{0,31}$"})
]
"""A name for later steps."""

Requirement = Annotated[
    str,
    BeforeValidator(parse_requirement),
    WithJsonSchema({"type": "string", "pattern": r"^ *(>=|<=|==|>|<) ?[0-9.]+( *, *(>=|<=|==|>|<) ?[0-9.]+)* *$"}),
]
"""Comparisons with a version."""

_REGEX_SCHEMA = {"type": "string", "format": "regex", "minLength": 1}

Regex = Annotated[str, BeforeValidator(parse_regex), WithJsonSchema(_REGEX_SCHEMA)]
Text = Annotated[str, BeforeValidator(parse_text), WithJsonSchema({"type": "string", "minLength": 1})]
Word = Annotated[str, BeforeValidator(parse_word), WithJsonSchema({"type": "string", "pattern": "^[!-~]{1,200}$"})]


def parse_pattern(value: object) -> str | int:
    """Read what a buffer is filled with.

    Raises:
        PydanticCustomError: it is neither one of the words nor a byte.
    """
    if value in PATTERNS or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255):
        return value
    raise refuse("random, counter, zero or a byte from 0 to 255", value, "for example random, or 0x5a")


def parse_returns(value: object) -> str | int | None:
    """Read a C return value.

    Raises:
        PydanticCustomError: it is neither an integer nor ``nonzero`` nor null.
    """
    if value is None or value == "nonzero" or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise refuse("an integer, null or nonzero", value, "null is C's NULL")


Pattern = Annotated[
    Literal["random", "counter", "zero"] | int,
    BeforeValidator(parse_pattern),
    WithJsonSchema({"anyOf": [{"enum": list(PATTERNS)}, {"type": "integer", "minimum": 0, "maximum": 255}]}),
]
"""What a buffer is filled with."""

Returns = Annotated[
    int | Literal["nonzero"] | None,
    BeforeValidator(parse_returns),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"enum": ["nonzero"]}, {"type": "null"}]}),
]
"""A C return value."""


def _class_name(value: str) -> str:
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", value):
        raise refuse("the class name of an error of usdm", value, "for example NotAligned; see usdm/errors.py")
    return value


ErrorName = Annotated[str, AfterValidator(_class_name), Field(json_schema_extra={"pattern": "^[A-Z][A-Za-z0-9]*$"})]
"""The class name of an error of ``usdm``."""
