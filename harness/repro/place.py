"""Which emulated function stands at the address that a fault line names, and what brings it there."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import ConfigurationError
from harness.fault.pci import Requester

# First VF Offset and VF Stride of QEMU's nvme are 1, so VF n has the device and function number n.
_MAX_VFS = 127
_MAX_BUS = 0xFE


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


def place(requester: str, *, vf: bool = True) -> Place:
    """The function at an address.

    A function other than 00.0 is a VF where it can be, because that is how it comes to be there on hardware too: of an
    nvme at BB:00.0, number 8 * device + function. Everything else is an edu device.

    Args:
        requester: ``02:01.2``, in PCI domain 0.
        vf: whether it may be a VF.

    Raises:
        NotReproducible: nothing can be put there.
    """
    bus, slot, function = numbers(requester)
    if bus > _MAX_BUS or (bus == 0 and (slot == 0 or (slot, function) == (0x1F, 0))):
        raise NotReproducible(
            f"{requester} is a place of the emulated chipset",
            hint="every other function of bus 00 and of the buses 01 to fe can be had",
        )
    number = slot << 3 | function
    if not vf or bus == 0 or not 1 <= number <= _MAX_VFS:
        return Place("dut", (f'dut: {{model: edu, at: "{requester}"}}',))
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


def numbers(requester: str) -> tuple[int, int, int]:
    """Bus, device and function of ``02:01.2``, which must be such an address."""
    found = Requester.parse(requester)
    if found is None:
        raise NotReproducible(f"{requester} is no PCI address")
    return found.bus, found.device, found.function
