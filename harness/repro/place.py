"""Which emulated function stands at the address that a fault line names, and what brings it there."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import ConfigurationError

# First VF Offset and VF Stride of QEMU's nvme are 1, so VF n has the device and function number n.
_MAX_VFS = 127
_MAX_SLOT_OF_BUS_0 = 0x0F


class NotReproducible(ConfigurationError):
    """No machine of the harness can give this line; the message names the rule that stands in the way."""


@dataclass(frozen=True, slots=True)
class Place:
    """A function at an address.

    Args:
        device: the function's name in the scenario.
        devices: lines of ``machine.devices``, each ``name: {...}``.
        bring_up: the steps, as YAML lines, after which the function can be registered.
    """

    device: str
    devices: tuple[str, ...]
    bring_up: tuple[str, ...] = ()


def place(requester: str) -> Place:
    """The function at an address.

    Function 00.0 of a bus, and slots of bus 0, are an edu device. Any other function is a VF, because that is how a
    function comes to be there on hardware too: of an nvme at BB:00.0, number 8 * device + function.

    Args:
        requester: ``02:01.2``, in PCI domain 0.

    Raises:
        NotReproducible: nothing can be put there.
    """
    bus, slot, function = (int(part, 16) for part in requester.replace(".", ":").split(":"))
    if bus == 0:
        if function or not 1 <= slot <= _MAX_SLOT_OF_BUS_0:
            raise NotReproducible(
                f"{requester} is a place of the emulated chipset",
                hint="on bus 00 there is room from 00:01.0 to 00:0f.0; on every other bus for every function",
            )
        return Place("dut", (f'dut: {{model: edu, at: "{requester}"}}',))
    number = slot << 3 | function
    if number == 0:
        return Place("dut", (f'dut: {{model: edu, at: "{requester}"}}',))
    if number > _MAX_VFS:
        raise NotReproducible(
            f"{requester} would be VF {number} of {bus:02x}:00.0, and QEMU's nvme has at most {_MAX_VFS}",
            hint=f"a line with a function up to {bus:02x}:0f.7 can be reproduced",
        )
    return Place(
        "dut",
        (
            f'pf: {{model: nvme, at: "{bus:02x}:00.0", vfs: {number}}}',
            f"dut: {{model: vf, of: pf, number: {number}}}",
        ),
        (
            "- open: {device: pf}",
            "- bus_master: {device: pf, enabled: true}",
            f"- enable_vfs: {{device: pf, count: {number}}}",
        ),
    )
