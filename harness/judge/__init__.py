"""Evidence against expectation gives a verdict. Nothing here starts, waits for, or changes anything."""

from harness.judge.bare import judge_bare
from harness.judge.verdict import judge, judge_both

__all__ = ["judge", "judge_bare", "judge_both"]
