"""The step that reads the IOMMU's own tables."""

from __future__ import annotations

from harness.agent.outcome import Outcome, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def mappings(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


STEPS: dict[str, Step] = {"mappings": mappings}
