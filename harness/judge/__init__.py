"""Evidence against expectation gives a verdict. Nothing here starts, waits for, or changes anything."""

from harness.judge.verdict import judge

__all__ = ["judge"]
