"""Models of devices beside QEMU: put in place of an edu, and what they cannot do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from harness.machine.devices import can_serve
from harness.machine.spec import SERVED, MachineSpec
from harness.run.options import DmaModel
from harness.run.resources import Emulation
from harness.scenario import Scenario
from harness.scenario.steps import Step

_DMA = ("dma_read", "dma_write")
# After these a device is no bus master.
_ENDS = ("close", "unbind", "unplug")
# What a step expects that says how many mappings a container has.
_FULL, _LEFT = "TooManyMappings", "mappings_left"


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
    """Why the devices that :func:`with_model` has put in cannot do the steps, as one line; None when they can.

    A device that reads its requests from memory does nothing, and says nothing, while it is no bus master; an edu is
    told of a DMA by its registers. And its rings are a mapping in its container, which counts like any other.
    """
    devices = scenario.machine.devices
    served = {name: device.model for name, device in devices.items() if device.model in SERVED}
    masters: set[str] = set()
    for step in _flat(scenario.steps) if served else ():
        name: str = getattr(step.args, "device", "")
        if step.kind in _ENDS or (step.kind == "bus_master" and not getattr(step.args, "enabled", True)):
            masters.discard(name)
        elif step.kind == "bus_master":
            masters.add(name)
        elif step.kind in _DMA and name in served and name not in masters and step.expect.error is None:
            return f"'{name}' is to make a DMA while it is no bus master, and a {served[name]} reads no request then"
        elif step.expect.error == _FULL or _LEFT in (step.expect.counts or {}):
            model = next(iter(served.values()))
            return f"it counts the mappings of a container, of which a {model} has one for its rings"
    return None


def _flat(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps, and those that a step has inside, in order."""
    for step in steps:
        yield step
        yield from _flat(getattr(step.args, "steps", ()))
