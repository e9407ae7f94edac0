"""A short session of `tests/fuzz/fuzz_logs.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
from fuzz_logs import session


def test_a_few_hundred_cases():
    failures: list[bytes] = []
    faults = session(400, 20, failures.append)
    assert failures == []
    # Cases without any fault in them would ask nothing.
    assert faults > 100
