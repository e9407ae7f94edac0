"""The devices' registers, as a driver uses them: edu and iommu-testdev (QEMU, docs/specs)."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.bare.pci import Pci
from harness.bare.qtest import Qtest
from harness.bare.spec import BareDeviceSpec
from harness.errors import GuestHang

_EDU_MEMORY = 0x40000
_EDU_RAISE, _EDU_ACK, _EDU_SOURCE, _EDU_DESTINATION, _EDU_COUNT, _EDU_COMMAND = 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
_RUN, _TO_MEMORY = 1, 2

_TEST_TRIGGER, _TEST_IOVA, _TEST_LENGTH, _TEST_RESULT, _TEST_ARM, _TEST_BACK = 0x00, 0x04, 0x0C, 0x10, 0x14, 0x1C
_TEST_RESULTS = {0: "ok", 0xDEAD_0002: "blocked", 0xDEAD_0004: "mismatch"}


def poll(qtest: Qtest, done: Callable[[], bool], what: str) -> None:
    """Look at a register until it says that something is done. Time in the machine leaps while nothing happens there.

    Raises:
        GuestHang: it did not say so before the connection's deadline.
    """
    while not done():
        if qtest.deadline.expired:
            raise GuestHang(f"{what} was not done within {qtest.deadline.budget:g} s")
        time.sleep(0)  # another thread's turn


class Driver:
    """What drives a device by its registers.

    Args:
        qtest: the connection.
        pci: the buses, set up.
        device: which one.
    """

    def __init__(self, qtest: Qtest, pci: Pci, device: BareDeviceSpec) -> None:
        self._qtest = qtest
        self._pci = pci
        self._device = device


class Edu(Driver):
    """QEMU's edu: copies between memory and 4 KiB of its own."""

    def dma(self, iova: int, size: int, offset: int, *, write: bool) -> dict[str, object]:
        """Copy 1 to 4095 bytes between an IOVA and the device's memory.

        Returns:
            What was observed: ``completed``. The device says so also of a DMA that was refused.
        """
        bar, own = self._pci.bar(self._device), _EDU_MEMORY + offset
        self._qtest.write64(bar + _EDU_SOURCE, own if write else iova)
        self._qtest.write64(bar + _EDU_DESTINATION, iova if write else own)
        self._qtest.write64(bar + _EDU_COUNT, size)
        self._qtest.write64(bar + _EDU_COMMAND, _RUN | (_TO_MEMORY if write else 0))
        poll(self._qtest, lambda: not self._qtest.read64(bar + _EDU_COMMAND) & _RUN, f"the DMA of {self._device.name}")
        return {"completed": True}

    def interrupt(self, address: int, data: int) -> None:
        """Send a message."""
        bar = self._pci.bar(self._device)
        self._pci.message(self._device, address, data)
        self._qtest.write32(bar + _EDU_RAISE, 1)
        self._qtest.write32(bar + _EDU_ACK, 1)


class IommuTestdev(Driver):
    """QEMU's iommu-testdev: writes one word over and over, and compares what it finds at a physical address."""

    def dma(self, iova: int, size: int, back: int) -> dict[str, object]:
        """Write to an IOVA, and look at a physical address.

        Returns:
            What was observed: ``result`` in words, ``code``, ``completed``.
        """
        bar, write = self._pci.bar(self._device), self._qtest.write32
        for at, address in ((_TEST_IOVA, iova), (_TEST_BACK, back)):
            write(bar + at, address & 0xFFFF_FFFF)
            write(bar + at + 4, address >> 32)
        write(bar + _TEST_LENGTH, size)
        write(bar + _TEST_ARM, 1)
        self._qtest.read32(bar + _TEST_TRIGGER)
        code = self._qtest.read32(bar + _TEST_RESULT)
        return {"completed": True, "result": _TEST_RESULTS.get(code, "error"), "code": code}
