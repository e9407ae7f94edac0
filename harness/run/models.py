"""Models of devices beside QEMU: put in place of an edu, and what they cannot do."""

from __future__ import annotations

from harness.machine.devices import can_serve
from harness.machine.spec import SERVED, MachineSpec
from harness.run.options import DmaModel
from harness.run.resources import Emulation
from harness.scenario import Scenario
from harness.scenario.steps import Step

_DMA = ("dma_read", "dma_write")
# After these a device is no bus master.
_ENDS = ("close", "unbind", "unplug")


def has_edu(scenario: Scenario) -> bool:
    """Whether it has a device that another model can stand in for."""
    return any(device.model == "edu" for device in scenario.machine.devices.values())


def with_model(scenario: Scenario, model: DmaModel) -> Scenario:
    """The same scenario with devices of another model where it has an edu, at the same places.

    Whatever sizes and offsets an edu can copy, they can.
    """
    machine = scenario.machine
    devices = {
        name: device.model_copy(update={"model": model}) if device.model == "edu" else device
        for name, device in machine.devices.items()
    }
    return scenario.model_copy(update={"machine": machine.model_copy(update={"devices": devices})})


def unmet_model(spec: MachineSpec, emulation: Emulation) -> str | None:
    """Why a build cannot have a machine's devices, as one line; None when it can.

    Args:
        spec: the machine.
        emulation: the build.
    """
    served = next((device.model for device in spec.devices if device.model in SERVED), None)
    if served is None:
        return None
    if not can_serve(emulation.capabilities.properties):
        return f"needs QEMU >=10.1 with vfio-user-pci for model: {served}, this is {emulation.build.version} without"
    return None


def unmet_steps(scenario: Scenario) -> str | None:
    """Why a scenario's devices cannot do its steps, as one line; None when they can.

    A device that reads its requests from memory does nothing, and says nothing, while it is no bus master; an edu is
    told of a DMA by its registers.
    """
    served = {name for name, device in scenario.machine.devices.items() if device.model in SERVED}
    masters: set[str] = set()
    for step in _flat(scenario.steps):
        name: str = getattr(step.args, "device", "")
        if step.kind in _ENDS or (step.kind == "bus_master" and not getattr(step.args, "enabled", True)):
            masters.discard(name)
        elif step.kind == "bus_master":
            masters.add(name)
        elif step.kind in _DMA and name in served - masters and step.expect.error is None:
            model = scenario.machine.devices[name].model
            return f"'{name}' makes a DMA while it is no bus master, and a {model} does not even read its requests then"
    return None


def _flat(steps: tuple[Step, ...]) -> list[Step]:
    """The steps, and those that a step has inside, in order."""
    return [one for step in steps for one in (step, *_flat(getattr(step.args, "steps", ())))]
