"""A log as commands take it: the text itself, a file, or standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TextIO

from harness.errors import ConfigurationError

_PATH_LENGTH: Final = 4096


@dataclass(frozen=True, slots=True)
class GivenLog:
    """What the words of a command line name.

    Args:
        name: what to call it in a message.
        text: the log, where the words are the log.
        stream: where to read it else, to be closed by the caller.
    """

    name: str
    text: str = ""
    stream: BinaryIO | None = None


def given_log(words: list[str]) -> GivenLog:
    """Find out what the words name: a file, standard input (``-``, or no words), or the text of a log.

    Raises:
        ConfigurationError: there is no such file, it cannot be read, or nothing is piped in.
    """
    if words and words != ["-"] and not _names_file(words):
        return GivenLog("the text", text=" ".join(words))
    stream, name = _stream(words)
    return GivenLog(name, stream=stream)


def _names_file(words: list[str]) -> bool:
    """Whether the argument is a file; a text that only looks like one is a mistake."""
    name = words[0]
    if len(words) > 1 or len(name) > _PATH_LENGTH or "\n" in name or "\0" in name:
        return False
    path = Path(name)
    try:
        if path.exists():
            return True
    except OSError:
        # A name that is too long for the system is a text.
        return False
    if " " not in name and ("/" in name or path.suffix in (".log", ".txt", ".gz", ".xz", ".zst")):
        raise ConfigurationError(
            f"there is no file {name}", hint="a log line as text goes in quotes; - reads standard input"
        )
    return False


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal; a function of its own, so that a test can say otherwise."""
    return stream.isatty()


def _stream(words: list[str]) -> tuple[BinaryIO, str]:
    if words and words != ["-"]:
        path = Path(words[0])
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder", hint="name a file in it; for a run's folder: --run")
        try:
            return path.open("rb"), str(path)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if not words and is_terminal(sys.stdin):
        raise ConfigurationError(
            "there is no log to read", hint="pipe one in (dmesg | harness ...), name a file, or give a line in quotes"
        )
    return sys.stdin.buffer, "standard input"
