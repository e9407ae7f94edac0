"""How a cell of either tier ends: with a verdict, with an error, or with a defect of the harness itself."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from harness.errors import FailureClass, HarnessError
from harness.results import CellResult, Outcome, Verdict


def judged(verdict: Verdict, facts: dict[str, Any]) -> CellResult:
    """The result of a cell that came to a verdict.

    Args:
        verdict: the verdict.
        facts: what the result says of the cell besides.
    """
    if verdict.passed:
        return CellResult(**facts, outcome=Outcome.PASS, verdict=verdict)
    failed = next(check for check in verdict.checks if not check.passed)
    return CellResult(
        **facts,
        outcome=Outcome.FAIL,
        failure_class=FailureClass.EXPECTATION,
        message=f"{failed.name}: {failed.message}",
        verdict=verdict,
    )


def errored(error: HarnessError, facts: dict[str, Any], on: str = "") -> CellResult:
    """The result of a cell that came to no verdict.

    Args:
        error: why.
        facts: what the result says of the cell besides.
        on: what its message begins with: on which of several guests it was.
    """
    return CellResult(
        **facts,
        outcome=Outcome.ERROR,
        failure_class=error.failure_class,
        message=on + error.message,
        hint=error.hint,
    )


def own_defect(folder: Path) -> HarnessError:
    """The exception that is being handled as an error of a cell; its traceback goes into the cell's folder."""
    text = traceback.format_exc()
    (folder / "traceback.txt").write_text(text, encoding="utf-8")
    return HarnessError(
        f"a defect of the harness itself: {text.splitlines()[-1]}",
        hint=f"the traceback is in {folder}/traceback.txt",
    )
