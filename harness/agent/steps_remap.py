"""Steps that call icp_sal_iommu."""

from __future__ import annotations

from harness.agent.outcome import Outcome, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def physical_address(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


def remap_size(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


def remap(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


def unremap(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


STEPS: dict[str, Step] = {
    "physical_address": physical_address,
    "remap_size": remap_size,
    "remap": remap,
    "unremap": unremap,
}
