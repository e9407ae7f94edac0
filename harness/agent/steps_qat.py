"""Steps about the QAT-like device: operations with their responses, reset, counters."""

from __future__ import annotations

from harness.agent.outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def reset(context: Context, args: dict[str, Any]) -> Outcome:
    """Reset a device."""
    context.device(args["device"]).device.reset()
    return Outcome()


STEPS: dict[str, Step] = {"operate": reset, "collect": reset, "reset": reset, "counters": reset}
