"""Commands in text, taken apart by the parsers of the programs that they call."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer

from harness.cli.app import app

COMMAND = typer.main.get_command(app)
_SEPARATORS = ("|", "&&", "||", ";", ">", "<", ">>", "2>&1", "<<")


def harness_calls(text: str) -> list[list[str]]:
    """The arguments of each call of ``harness`` in a line of shell; words as placeholders stand for themselves."""
    words = shlex.split(text.replace("\\|", "|"), comments=True)
    found: list[list[str]] = []
    open_call: list[str] | None = None
    for word in words:
        if word in _SEPARATORS:
            open_call = None
        elif open_call is not None:
            open_call.append(word)
        elif re.fullmatch(r"(\S+/)?harness", word):
            open_call = []
            found.append(open_call)
    return found


def problem(arguments: list[str]) -> str | None:
    """What is wrong with the arguments of ``harness``: an unknown command, option or value; None when nothing is.

    Its own parser says so. Nothing of the command is run.
    """
    words = [word for word in arguments if word not in ("...", "…")]
    command: Any = COMMAND
    path = ["harness"]
    context: Any = None
    while True:
        if words and words[0] in ("--help", "-h", "--version"):
            return None
        commands = getattr(command, "commands", None)
        if commands is None:
            break
        if words and words[0] == "--debug":
            words = words[1:]
        if not words:
            return None
        if words[0] not in commands:
            return f"{' '.join(path)} has no command {words[0]}"
        command = commands[words[0]]
        path.append(words[0])
        words = words[1:]
    if "--help" in words:
        return None
    try:
        context = command.make_context(" ".join(path), list(words))
    except typer._click.exceptions.UsageError as error:
        # Where a text only names a command, what must be given is left out.
        return None if not words and "Missing argument" in error.format_message() else error.format_message()
    context.close()
    return None
