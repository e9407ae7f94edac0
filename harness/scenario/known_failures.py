"""The file of known failures: which cells may fail, how, why, and until when."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from harness.scenario.base import Model
from harness.scenario.matrix import Values
from harness.scenario.values import Text, parse_regex, refuse

_DATE_HINT = "the last day on which it counts, year-month-day: 2027-03-01"


def parse_date(value: object) -> date:
    """Read a day.

    Raises:
        PydanticCustomError: it is none.
    """
    try:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise refuse("a date", value, _DATE_HINT)


def parse_link(value: object) -> str:
    """Read where something is followed up.

    Raises:
        PydanticCustomError: it is neither an address nor a path of the project.
    """
    if isinstance(value, str) and re.fullmatch(r"https?://[^\s]+|[\w./-]+\.md(#[\w-]+)?", value):
        return value
    raise refuse("a link", value, "an address, https://..., or a document of the project: docs/troubleshooting.md")


def parse_signature(value: object) -> str:
    """Read the regular expression of a failure.

    Raises:
        PydanticCustomError: it is none, or is found in every text.
    """
    signature = parse_regex(value)
    if re.search(signature, ""):
        raise refuse("a signature that is not in every text", value, "write words of the failure's message")
    return signature


class KnownFailureModel(Model):
    """A failure that is known."""

    scenario: Text = Field(description="Id of the scenario, a folder, or a pattern as a shell has them.")
    when: Values = Field(
        default_factory=dict, description="Axis to a value or a list of them; all axes must be so. None is every point."
    )
    signature: Annotated[str, BeforeValidator(parse_signature)] = Field(
        description="Regular expression that is found in every check that failed, of an error in its message; a "
        "failure that is otherwise is not known."
    )
    class_: Literal["boot", "panic", "hang", "lost-guest", "emulator-crash", "infrastructure"] | None = Field(
        None, alias="class", description="The class of the error that is known; without it a failed expectation is."
    )
    reason: Text = Field(description="Why it fails.")
    link: Annotated[str, BeforeValidator(parse_link)] = Field(description="Where that is followed up.")
    until: Annotated[date, BeforeValidator(parse_date)] = Field(
        description="The last day on which it counts; after it the failure is one."
    )


class KnownFailuresModel(Model):
    """A file of known failures."""

    failures: tuple[KnownFailureModel, ...] = Field(
        strict=False, description="The entries; the first that fits a cell counts."
    )


def is_failures(data: Any) -> bool:
    """Whether a file's data is that of known failures."""
    return isinstance(data, dict) and "failures" in data
