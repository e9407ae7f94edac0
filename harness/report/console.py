"""The console that reports are written to."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """Rich's console, with a reader that goes away told to the caller: Rich would exit with 1, a failed expectation."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which the command line deals with."""
        raise BrokenPipeError
