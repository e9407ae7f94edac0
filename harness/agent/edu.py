"""User-space driver for QEMU's educational PCI device (1234:11e8) through VFIO.

The device has 4096 bytes of its own and copies them to or from memory. Its registers below 0x80 take 4 bytes, those of
DMA 8 bytes. It says that a DMA is done in the same way whether or not the IOMMU let it through: completion is the
device's word only, and whether bytes arrived is seen in memory and in the fault records.
"""

from __future__ import annotations

import os
import select
import time

from harness.agent.mapped import MappedEngine
from harness.agent.outcome import DeviceBusy, DmaLength, DmaTimeout, StepError
from usdm import vfio_uapi as uapi
from usdm.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.vfio import Device

IDENTIFICATION = 0x010000ED
BUFFER_SIZE = 4096
BUFFER_ADDRESS = 0x40000

_ID, _LIVENESS = 0x00, 0x04
_IRQ_STATUS, _IRQ_ACKNOWLEDGE = 0x24, 0x64
_SOURCE, _DESTINATION, _COUNT, _COMMAND = 0x80, 0x88, 0x90, 0x98
_RUN, _FROM_DEVICE, _INTERRUPT = 1, 2, 4
_IRQ_DMA = 0x100

_LIVE = 0x5A5A_1234
_WORD = 0xFFFF_FFFF
_POLL_SECONDS = 0.005


class NotEdu(StepError):
    """The device does not answer as an edu."""


class NoInterrupt(StepError):
    """The device's MSI cannot be set up."""


class Edu(MappedEngine):
    """An open edu: memory space on, bus master off, MSI ready."""

    def __init__(self, device: Device) -> None:
        """Start the device and take it over; it is closed when that fails.

        Raises:
            NotEdu: It does not answer as an edu.
            NoInterrupt: Its MSI cannot be set up.
            usdm.errors.DeviceError: VFIO refused something.
        """
        super().__init__(device)
        self._event = -1
        try:
            device.set_bus_master(False)
            self._identify()
            self._map("Q")
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._arm()
        except BaseException:
            self.close()
            raise

    def _identify(self) -> None:
        found = self._read(_ID)
        if found != IDENTIFICATION:
            raise NotEdu(f"{self.device.bdf} identifies itself as {found:#010x}, an edu as {IDENTIFICATION:#010x}")
        self._write(_LIVENESS, _LIVE)
        found = self._read(_LIVENESS)
        if found != ~_LIVE & _WORD:
            raise NotEdu(f"{self.device.bdf} inverts {_LIVE:#x} to {found:#x}")

    def _arm(self) -> None:
        try:
            vectors = self.device.irq_count(uapi.PCI_MSI_IRQ)
            if vectors:
                self.device.set_irqs(uapi.PCI_MSI_IRQ, [self._event])
        except DeviceError as error:
            raise NoInterrupt(f"the MSI of {self.device.bdf}: {error}") from error
        if not vectors:
            raise NoInterrupt(f"{self.device.bdf} has no MSI")

    # ---- registers

    def _read(self, register: int) -> int:
        return int.from_bytes(self.device.read(uapi.PCI_BAR0_REGION, register, 4), "little")

    def _write(self, register: int, value: int) -> None:
        self.device.write(uapi.PCI_BAR0_REGION, register, value.to_bytes(4, "little"))

    def _running(self) -> bool:
        return bool(self._words()[_COMMAND // 8] & _RUN)

    # ---- DMA

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool, seconds: float = 10.0) -> None:
        """Have the device copy, and wait until it says that it is done; it says so of a refused DMA too.

        Args:
            iova: Where in memory.
            size: Bytes, 1 to 4096.
            device_offset: Where in the device's own buffer.
            write: The device writes memory; else it reads memory.
            seconds: How long to wait.

        Raises:
            DmaLength: The range exceeds the device's own buffer. Nothing was written to the device.
            DeviceBusy: The last DMA still runs.
            DmaTimeout: It is not done in time.
        """
        if not 1 <= size <= BUFFER_SIZE or device_offset < 0 or device_offset + size > BUFFER_SIZE:
            raise DmaLength(f"{size} bytes at {device_offset} of {BUFFER_SIZE}")
        if self._running():
            raise DeviceBusy(f"{self.device.bdf} still runs a DMA")
        interrupt = self._interrupts()
        self._drain()
        registers = self._words()
        place = BUFFER_ADDRESS + device_offset
        registers[_SOURCE // 8] = place if write else iova
        registers[_DESTINATION // 8] = iova if write else place
        registers[_COUNT // 8] = size
        registers[_COMMAND // 8] = _RUN | (_FROM_DEVICE if write else 0) | (_INTERRUPT if interrupt else 0)
        if interrupt:
            self._wait_interrupt(seconds)
        else:
            self._wait_status(seconds)

    def _interrupts(self) -> bool:
        """Tell whether the end of a DMA can be announced by an interrupt."""
        # An MSI is a write to memory as well: without bus mastering none arrives, whatever the device does.
        return self.bus_master

    def _drain(self) -> None:
        """Forget an interrupt of a DMA that was given up."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return

    def _wait_interrupt(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        if not poll.poll(seconds * 1000):
            state = "its run bit is still set" if self._running() else "its run bit is clear"
            raise DmaTimeout(f"no interrupt of {self.device.bdf} in {seconds:g} s, {state}")
        os.eventfd_read(self._event)
        status = self._read(_IRQ_STATUS)
        self._write(_IRQ_ACKNOWLEDGE, status)
        if not status & _IRQ_DMA or self._running():
            raise DmaTimeout(f"{self.device.bdf} interrupted with status {status:#x}, not for the end of the DMA")

    def _wait_status(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._running():
            if time.monotonic() >= end:
                raise DmaTimeout(f"the run bit of {self.device.bdf} is still set after {seconds:g} s")
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Close the device; may be called twice."""
        self._unmap()
        self.device.close()
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)
