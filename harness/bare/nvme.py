"""An NVMe controller's registers, as a driver uses them: the admin queue, and VFs set online by their PF.

NVM Express Base Specification: 3.1 "Controller Properties", 5.17 "Identify", 5.19 "Virtualization Management".
"""

from __future__ import annotations

import struct

from harness.bare.devices import poll
from harness.bare.layout import NVME, NVME_PAGES
from harness.bare.pci import Pci
from harness.bare.qtest import Qtest
from harness.bare.spec import BareDeviceSpec
from harness.machine.vtd.bits import PAGE

_CC, _CSTS, _AQA, _ASQ, _ACQ, _DOORBELLS = 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
_READY, _FATAL = 1 << 0, 1 << 1
_ENABLE = 1 | 6 << 16 | 4 << 20  # EN, IOSQES 64 bytes, IOCQES 16 bytes
_DEPTH = 32
_IDENTIFY, _MANAGE = 0x06, 0x1C
_CONTROLLER = 1
_ASSIGN, _ONLINE = 8, 9
_QUEUES, _VECTORS = 0, 1


class Nvme:
    """A controller: a PF, or a VF that is online.

    Args:
        qtest: the connection.
        pci: the buses, set up.
        device: which one.
        number: its place among the machine's devices, from 0, which says where its queues are.
    """

    def __init__(self, qtest: Qtest, pci: Pci, device: BareDeviceSpec, number: int) -> None:
        self._qtest = qtest
        self._pci = pci
        self.device = device
        self.queues = NVME + number * NVME_PAGES * PAGE
        self._place = 0
        self._phase = 1
        self.enabled = False

    def enable(self) -> bool:
        """Reset the controller and enable it with queues at their physical addresses; whether it is ready."""
        bar = self._pci.bar(self.device)
        self._qtest.write32(bar + _CC, 0)
        poll(self._qtest, lambda: not self._qtest.read32(bar + _CSTS) & _READY, f"the reset of {self.device.name}")
        self._qtest.write(self.queues, bytes(2 * PAGE))
        self._qtest.write32(bar + _AQA, (_DEPTH - 1) << 16 | _DEPTH - 1)
        self._qtest.write64(bar + _ASQ, self.queues)
        self._qtest.write64(bar + _ACQ, self.queues + PAGE)
        self._qtest.write32(bar + _CC, _ENABLE)
        self._place, self._phase = 0, 1
        status = self._qtest.read32(bar + _CSTS)
        self.enabled = bool(status & _READY) and not status & _FATAL
        return self.enabled

    def identify(self, iova: int) -> dict[str, object]:
        """Have the controller write the 4 KiB of Identify Controller to an IOVA.

        Returns:
            What was observed: ``completed``, and where so the ``status`` of the completion; of a refused DMA it is 0.
        """
        return self._submit(_IDENTIFY, iova, _CONTROLLER, 0)

    def set_online(self, number: int) -> bool:
        """Of a PF: give VF ``number`` two queue pairs and an interrupt, and set it online."""
        wanted = ((_ASSIGN, _VECTORS, 1), (_ASSIGN, _QUEUES, 2), (_ONLINE, 0, 0))
        return all(
            self._submit(_MANAGE, 0, number << 16 | kind << 8 | action, count).get("status") == 0
            for action, kind, count in wanted
        )

    def _submit(self, opcode: int, address: int, dword10: int, dword11: int) -> dict[str, object]:
        bar, place = self._pci.bar(self.device), self._place
        command = struct.pack("<IIQQQQIIIIII", opcode | place << 16, 0, 0, 0, address, 0, dword10, dword11, 0, 0, 0, 0)
        self._qtest.write(self.queues + place * 64, command)
        self._place = (place + 1) % _DEPTH
        self._qtest.write32(bar + _DOORBELLS, self._place)
        found: list[int] = []

        def done() -> bool:
            word = self._qtest.read32(self.queues + PAGE + place * 16 + 12)
            if word >> 16 & 1 == self._phase:
                found.append(word >> 17)
            return bool(found) or bool(self._qtest.read32(bar + _CSTS) & _FATAL)

        poll(self._qtest, done, f"the command of {self.device.name}")
        if not found:
            self.enabled = False
            return {"completed": False}
        if not self._place:
            self._phase ^= 1
        self._qtest.write32(bar + _DOORBELLS + 4, self._place)
        return {"completed": True, "status": found[0]}
