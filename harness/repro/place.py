"""Which emulated function stands at the address that a fault line names, and what brings it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from harness.errors import ConfigurationError
from harness.fault.pci import Requester, requester_name

DEVICE: Final = "dut"
"""The function's name in a scenario."""

# First VF Offset and VF Stride of QEMU's nvme are 1, so VF n has the device and function number n.
_MAX_VFS = 127
_MAX_BUS = 0xFE


class NotReproducible(ConfigurationError):
    """No machine of the harness can give this line; the message names the rule that stands in the way."""


@dataclass(frozen=True, slots=True)
class Place:
    """A function at an address, by the name of DEVICE.

    Args:
        devices: lines of ``machine.devices``, each ``name: {...}``.
        bring_up: the steps, as YAML lines, after which the function can be registered.
    """

    devices: tuple[str, ...]
    bring_up: tuple[str, ...] = ()

    @property
    def is_vf(self) -> bool:
        """Whether it is a VF of an nvme, which moves whole sectors; else it is an edu."""
        return bool(self.bring_up)


def place(requester: Requester, *, vf: bool = True) -> Place:
    """The function at an address.

    A function other than 00.0 is a VF where it can be, because that is how it comes to be there on hardware too: of an
    nvme at BB:00.0, number 8 * device + function. Everything else is an edu device.

    Args:
        requester: its address; the PCI domain does not matter.
        vf: whether it may be a VF.

    Raises:
        NotReproducible: nothing can be put there.
    """
    bus, slot, function = requester.bus, requester.device, requester.function
    name = requester_name(requester.rid)
    if bus > _MAX_BUS or (bus == 0 and (slot == 0 or (slot, function) == (0x1F, 0))):
        raise NotReproducible(
            f"{name} is a place of the emulated chipset",
            hint="every other function of bus 00 and of the buses 01 to fe can be had",
        )
    number = slot << 3 | function
    if not vf or bus == 0 or not 1 <= number <= _MAX_VFS:
        return Place((f'{DEVICE}: {{model: edu, at: "{name}"}}',))
    return Place(
        (
            f'pf: {{model: nvme, at: "{bus:02x}:00.0", vfs: {number}}}',
            f"{DEVICE}: {{model: vf, of: pf, number: {number}}}",
        ),
        (
            "- open: {device: pf}",
            "- bus_master: {device: pf, enabled: true}",
            f"- enable_vfs: {{device: pf, count: {number}}}",
        ),
    )
