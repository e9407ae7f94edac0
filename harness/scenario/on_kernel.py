"""What of a scenario can run on the kernel's own functions, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterator

from harness.scenario.args_iova import IOVA_KINDS
from harness.scenario.model import Scenario
from harness.scenario.steps import Nested, Step

BESIDE = frozenset(
    {
        *("register", "open", "close", "bus_master", "buffer", "release", "fill", "check", "compare", "hugepages"),
        *("dma_read", "dma_write", "mappings"),
    }
)
"""What a program does beside them that is the same when the kernel maps for the device. Registering a device, like
opening it, gives it to the test module."""

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


def unmet_kernel(scenario: Scenario) -> str | None:
    """Why a scenario cannot run on the kernel's own functions, as one line; None when it can."""
    steps = list(all_steps(scenario.steps))
    if not any(step.kind in IOVA_KINDS for step in steps):
        return "no step calls a function that the kernel has too; --implementation libusdm is what it is compared with"
    for step in steps:
        if step.kind in _NOT_THE_KERNELS:
            return f"the kernel has nothing for the step {step.kind}: {_NOT_THE_KERNELS[step.kind]}"
        if step.kind not in IOVA_KINDS and step.kind not in BESIDE:
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


def all_steps(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Every step, those inside others after the outer one."""
    for step in steps:
        yield step
        if isinstance(step.args, Nested):
            yield from all_steps(step.args.steps)


def unjudged(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where a scenario says what the kernel does otherwise and no run could ever show it, each with the reason."""
    only = scenario.needs.implementation
    reason = unmet_kernel(scenario)
    if reason is None and only not in (None, "kernel"):
        reason = f"needs: {{implementation: {only}}} keeps it from running there"
    if reason is None:
        return
    for path, step in _placed(scenario.steps, ("steps",)):
        if step.kernel is not None:
            yield (*path, "kernel"), reason
    if scenario.expect.kernel is not None:
        yield ("expect", "kernel"), reason


def _placed(steps: tuple[Step, ...], at: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Step]]:
    for index, step in enumerate(steps):
        yield (*at, index), step
        if isinstance(step.args, Nested):
            yield from _placed(step.args.steps, (*at, index, step.kind, "steps"))
