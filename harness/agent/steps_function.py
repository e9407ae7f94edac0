"""Steps about PCI functions: VFIO without an IOMMU, VFs switched on and off."""

from __future__ import annotations

import os

from harness.agent import pci
from harness.agent.outcome import NotSet, Outcome, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.agent.context import Context
    from harness.agent.registry import Step


NOIOMMU_PARAMETER = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def noiommu(_context: Context, args: dict[str, Any]) -> Outcome:
    """Allow VFIO without an IOMMU, or forbid it. A device that is bound to vfio-pci already stays as it is.

    Raises:
        NotSet: The kernel was built without CONFIG_VFIO_NOIOMMU, has no VFIO, or refused.
    """
    try:
        pci.write(NOIOMMU_PARAMETER, "Y" if args["enabled"] else "N")
    except FileNotFoundError:
        raise NotSet("this kernel has no no-IOMMU mode (CONFIG_VFIO_NOIOMMU)") from None
    except OSError as error:
        raise NotSet(f"enable_unsafe_noiommu_mode: {os.strerror(error.errno or 0)}") from error
    return Outcome()


def enable_vfs(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


def disable_vfs(_context: Context, _args: dict[str, Any]) -> Outcome:
    """Refuse."""
    raise StepError("not there yet")


STEPS: dict[str, Step] = {"noiommu": noiommu, "enable_vfs": enable_vfs, "disable_vfs": disable_vfs}
