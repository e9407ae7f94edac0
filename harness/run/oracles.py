"""What a scenario is compared with: Intel's C library, or the kernel's own functions; and what cannot run there."""

from __future__ import annotations

from collections.abc import Iterator

from harness.results import OracleName
from harness.scenario import Scenario
from harness.scenario.args_iova import IOVA_KINDS
from harness.scenario.steps import Nested, Step
from harness.scenario.values import satisfies

# What a program does beside them that is the same when the kernel maps for the device. Registering a device, like
# opening it, gives it to the test module.
_BESIDE = frozenset(
    {
        *("register", "open", "close", "bus_master", "buffer", "release", "fill", "check", "compare", "hugepages"),
        *("dma_read", "dma_write", "mappings"),
    }
)
_NOT_THE_KERNELS = {
    "fork": "a file of the test module belongs to one process",
    "in_vm": "the test module is in the guest, not in the virtual machine inside",
    "pass_through": "the device belongs to the test module",
    "noiommu": "no-IOMMU mode is VFIO's; the kernel maps for a device as the machine is",
    "unregister": "nothing is registered with the kernel",
    "register_fd": "nothing is registered with the kernel",
    "container_info": "there is no container",
    "container_map": "there is no container",
    "container_unmap": "there is no container",
}
_MODEL = "edu"
"""What the test module drives."""

# Kinds of steps that not every version of the C library has a function for.
_SINCE = {"map": ">=26.02", "unmap": ">=26.02", "map_each": ">=26.02", "unmap_each": ">=26.02", "threads": ">=26.02"}


def oracle_of(scenario: Scenario) -> OracleName:
    """What a scenario's steps on ``usdm`` are compared with: the kernel where one of them calls what that has too."""
    return "kernel" if any(scenario.uses(kind) for kind in IOVA_KINDS) else "libusdm"


def unmet_kernel(scenario: Scenario) -> str | None:
    """Why a scenario cannot run on the kernel's own functions, as one line; None when it can."""
    steps = list(_all(scenario.steps))
    if not any(step.kind in IOVA_KINDS for step in steps):
        return "no step calls a function that the kernel has too; --implementation libusdm is what it is compared with"
    for step in steps:
        if step.kind in _NOT_THE_KERNELS:
            return f"the kernel has nothing for the step {step.kind}: {_NOT_THE_KERNELS[step.kind]}"
        if step.kind not in IOVA_KINDS and step.kind not in _BESIDE:
            return f"the kernel has nothing for the step {step.kind}"
        if step.kind == "open":
            reason = _unmet_open(step)
            if reason is not None:
                return reason
    others = sorted({device.model for device in scenario.machine.devices.values()} - {_MODEL})
    return f"the test module drives an {_MODEL}, not a {others[0]}" if others else None


def _unmet_open(step: Step) -> str | None:
    args = step.args_json()
    if args.get("through") == "iommufd":
        return "the kernel maps for the device itself, not through IOMMUFD"
    if args.get("container") or args.get("type"):
        return "the kernel has no containers, and a device has the domain that it has"
    return None


def unmet_library(scenario: Scenario, version: str) -> str | None:
    """Why a scenario cannot run on Intel's C library, as one line; None when it can.

    Args:
        scenario: the scenario.
        version: the library's, e.g. ``26.08.0-2``.
    """
    kinds = [step.kind for step in _all(scenario.steps)]
    lacking = next((kind for kind in kinds if kind in IOVA_KINDS), None)
    # In the order of the table, as the reason that is told does not depend on the scenario's order.
    lacking = lacking or next((k for k, since in _SINCE.items() if k in kinds and not satisfies(version, since)), None)
    return f"libusdm {version} has no function for the step {lacking}" if lacking else None


def _all(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Every step, those inside others after the outer one."""
    for step in steps:
        yield step
        if isinstance(step.args, Nested):
            yield from _all(step.args.steps)
