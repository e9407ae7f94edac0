"""A log as commands take it: the text itself, a file, or standard input."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import BinaryIO

from harness.errors import ConfigurationError

_LOOKS_LIKE_A_PATH = re.compile(r"(?:\.{0,2}/)?[\w.+/-]+\.(?:log|txt|out|dmesg|gz)|(?:\.{1,2})?/[\w.+/-]+")


def open_log(words: list[str]) -> BinaryIO:
    """Open what the words of the command line name.

    Args:
        words: nothing or ``-`` for standard input; else one word that names a file, or the log's own text.

    Raises:
        ConfigurationError: there is no such file, it cannot be read, or nothing is piped in.
    """
    if words in ([], ["-"]):
        if not words and sys.stdin.isatty():
            raise ConfigurationError(
                "no log was given", hint="name a file, paste the line in quotes, or pipe it in: dmesg | harness ..."
            )
        return sys.stdin.buffer
    text = " ".join(words)
    if len(words) == 1:
        file = Path(text)
        try:
            if file.is_dir():
                raise ConfigurationError(f"{text} is a folder", hint="name the log in it")
            if file.exists():
                return file.open("rb")
        except OSError as error:
            # A pasted line may be too long for a file's name.
            if not isinstance(error, PermissionError):
                return io.BytesIO(text.encode())
            raise ConfigurationError(f"{text} cannot be read: {error.strerror}") from error
        except ValueError:
            pass
        if _LOOKS_LIKE_A_PATH.fullmatch(text):
            raise ConfigurationError(f"there is no file {text}", hint="check the spelling of the path")
    return io.BytesIO(text.encode("utf-8", "surrogateescape"))
