"""Resources of a PF's NVMe controller given to those of its VFs (NVM Express Base Specification 2.0, 5.29, 8.26).

A VF's controller is a secondary controller: offline until its PF gives it queues and an interrupt and sets it online.
"""

from __future__ import annotations

import struct

from harness.agent.outcome import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.agent.nvme import Nvme

_VIRTUALIZATION_MANAGEMENT = 0x1C
_PRIMARY_CAPABILITIES, _SECONDARY_CONTROLLERS = 0x14, 0x15  # CNS
_ALLOCATE_PRIMARY, _ASSIGN_SECONDARY, _ONLINE = 1, 8, 9
_QUEUES, _INTERRUPTS = 0, 1
# Where the primary controller capabilities say what the PF's controller itself is allocated (VIRFAP, VQRFAP).
_ALLOCATED_AT = ((_INTERRUPTS, 72), (_QUEUES, 40))
# A VF gets a pair of admin queues, a pair of I/O queues, and an interrupt, which it does not use.
_VF_RESOURCES = ((_INTERRUPTS, 1), (_QUEUES, 2))
_ENTRY = struct.Struct("<HHB3xHHH")  # 32 bytes each, behind 32 bytes with their number
_ENTRY_SIZE = 32


class NoSecondary(StepError):
    """The PF's controller has no secondary controller for a VF."""


def _manage(pf: Nvme, action: int, controller: int, resource: int = 0, number: int = 0) -> None:
    pf.admin(_VIRTUALIZATION_MANAGEMENT, dwords=(action | resource << 8 | controller << 16, number, 0, 0, 0, 0))


def release_flexible(pf: Nvme) -> None:
    """Take the flexible resources away from the PF where it has some, so that its VFs can have them.

    The PF's controller is reset then: that is when the allocation takes effect. QEMU's PF has none to begin with.

    Raises:
        NvmeStatus, DmaTimeout, NotNvme: See `Nvme.start` and `Nvme.admin`.
    """
    pf.start()
    about = pf.identify(_PRIMARY_CAPABILITIES, controller=pf.controller)
    allocated = [kind for kind, at in _ALLOCATED_AT if int.from_bytes(about[at : at + 2], "little")]
    for resource in allocated:
        _manage(pf, _ALLOCATE_PRIMARY, pf.controller, resource)
    if allocated:
        pf.restart()


def secondaries(pf: Nvme) -> dict[int, int]:
    """Return the numbers of the PF's VFs, from 1, and the identifiers of their controllers."""
    pf.start()
    about = pf.identify(_SECONDARY_CONTROLLERS)
    entries = (_ENTRY.unpack_from(about, _ENTRY_SIZE * (number + 1)) for number in range(about[0]))
    return {vf: controller for controller, _, _, vf, _, _ in entries}


def set_online(pf: Nvme, numbers: list[int]) -> None:
    """Give VFs their resources and set them online.

    Args:
        pf: The PF's controller.
        numbers: Which VFs, from 1; SR-IOV must have been switched on for them.

    Raises:
        NoSecondary: There is no such VF.
        NvmeStatus, DmaTimeout, NotNvme: See `Nvme.admin`.
    """
    known = secondaries(pf)
    for number in numbers:
        if number not in known:
            raise NoSecondary(f"{pf.device.bdf} has no secondary controller for its VF {number}")
        for resource, count in _VF_RESOURCES:
            _manage(pf, _ASSIGN_SECONDARY, known[number], resource, count)
        _manage(pf, _ONLINE, known[number])
