"""Steps about PCI functions: VFIO without an IOMMU, VFs switched on and off."""

from __future__ import annotations

from harness.agent.outcome import Outcome, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


def noiommu(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


def enable_vfs(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


def disable_vfs(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


STEPS: dict[str, Step] = {"noiommu": noiommu, "enable_vfs": enable_vfs, "disable_vfs": disable_vfs}
