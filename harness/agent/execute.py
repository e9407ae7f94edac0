"""Runs one step and puts what came of it into an answer."""

from __future__ import annotations

import time

from harness.agent import registry
from harness.agent.outcome import Outcome, StepError
from usdm.errors import UsdmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context


def execute(context: Context, kind: str, args: dict[str, Any]) -> dict[str, Any]:
    """Run a step.

    Args:
        context: State of the process.
        kind: The step's kind.
        args: Its arguments.

    Returns:
        The answer: `returns`, `error`, `values`, `seconds`, `children`. An exception that no step raises on purpose is
        a defect of this package or of `usdm`; it becomes the error `InternalError`, which no scenario expects.
    """
    started = time.monotonic()
    try:
        outcome = registry.find(kind)(context, args)
        error = None if outcome.error is None else describe(outcome.error)
    except Exception as caught:
        outcome, error = Outcome(), describe(caught)
    return {
        "returns": outcome.returns,
        "error": error,
        "values": outcome.values,
        "seconds": round(time.monotonic() - started, 6),
        "children": outcome.children,
    }


def describe(error: Exception) -> dict[str, str]:
    """Return the class name and the text of an error that belongs to a step, or `InternalError` and a traceback."""
    if isinstance(error, UsdmError | StepError):
        return {"type": type(error).__name__, "message": str(error)}
    import traceback  # costs the guest time, and is needed for defects only

    return {"type": "InternalError", "message": "".join(traceback.format_exception(error))}
