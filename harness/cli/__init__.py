"""The command line: a thin face of the same calls that tests use."""

from harness.cli.app import main

__all__ = ["main"]
