"""What a scenario is compared with: Intel's C library, or the kernel's own functions; and what cannot run there."""

from __future__ import annotations

from harness.results import OracleName
from harness.scenario import Scenario
from harness.scenario.args_iova import IOVA_KINDS
from harness.scenario.on_kernel import all_steps
from harness.scenario.values import satisfies

# Kinds of steps that not every version of the C library has a function for.
_SINCE = {"map": ">=26.02", "unmap": ">=26.02", "map_each": ">=26.02", "unmap_each": ">=26.02", "threads": ">=26.02"}


def oracle_of(scenario: Scenario) -> OracleName:
    """What a scenario's steps on ``usdm`` are compared with: the kernel where one of them calls what that has too."""
    return "kernel" if any(scenario.uses(kind) for kind in IOVA_KINDS) else "libusdm"


def unmet_library(scenario: Scenario, version: str) -> str | None:
    """Why a scenario cannot run on Intel's C library, as one line; None when it can.

    Args:
        scenario: the scenario.
        version: the library's, e.g. ``26.08.0-2``.
    """
    kinds = [step.kind for step in all_steps(scenario.steps)]
    lacking = next((kind for kind in kinds if kind in IOVA_KINDS), None)
    # In the order of the table, as the reason that is told does not depend on the scenario's order.
    lacking = lacking or next((k for k, since in _SINCE.items() if k in kinds and not satisfies(version, since)), None)
    return f"libusdm {version} has no function for the step {lacking}" if lacking else None
