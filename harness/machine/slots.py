"""Where the harness's own devices are on bus 0: out of the way of those under test.

Slots that they have when nothing is in the way: 10 to 17 (hex) root ports, whose buses the firmware numbers 1 to 8 in
that order; 1c virtio-iommu or the function of AMD's IOMMU; 1d virtio-serial; 1e pvpanic. The machine has its host
bridge in slot 0 and its ISA bridge at 1f.0. A slot that a device under test wants is left to it.
"""

from __future__ import annotations

from typing import Final

from harness.errors import ConfigurationError
from harness.machine.spec import MachineSpec

MAX_PORTS: Final = 8
IOMMU: Final = "iommu"
SERIAL: Final = "serial"
PANIC: Final = "pvpanic"

_PORTS: Final = [f"port{number}" for number in range(1, MAX_PORTS + 1)]
_PREFERRED: Final = {
    **{name: 0x10 + index for index, name in enumerate(_PORTS)},
    IOMMU: 0x1C,
    SERIAL: 0x1D,
    PANIC: 0x1E,
}
_SLOTS: Final = range(0x1E, 0, -1)


def own_slots(spec: MachineSpec) -> dict[str, int]:
    """Slot of each of the harness's own devices by name.

    The names are ``port1`` to ``port8``, :data:`IOMMU`, :data:`SERIAL` and :data:`PANIC`. The slots of the ports ascend
    with their numbers, because the firmware numbers the buses by the slots.

    Raises:
        ConfigurationError: devices under test leave too few slots.
    """
    wanted = {slot for bus, slot, _ in (device.bdf for device in spec.devices) if bus == 0}
    taken = wanted | set(_PREFERRED.values())
    free = [slot for slot in _SLOTS if slot not in taken]
    homeless = [name for name, slot in _PREFERRED.items() if slot in wanted]
    if len(homeless) > len(free):
        raise ConfigurationError(
            f"devices in {len(wanted)} slots of bus 00 leave no room for the machine's own",
            hint="put some of them behind root ports",
        )
    slots = _PREFERRED | dict(zip(homeless, free, strict=False))
    return slots | dict(zip(_PORTS, sorted(slots[name] for name in _PORTS), strict=True))


def port_address(spec: MachineSpec, port: int) -> str:
    """Where a root port is, by its number, e.g. ``00:10.0`` for port 1."""
    return f"00:{own_slots(spec)[f'port{port}']:02x}.0"
