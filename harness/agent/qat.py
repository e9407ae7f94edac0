"""User-space driver for the QAT-like device (8086:4940 and 4941) through VFIO; docs/qat-device.md is its reference.

The device takes requests from a ring in memory and puts responses into another one. Each response says whether the
IOMMU refused a DMA, and which address. Requests are handed over by a write to a register; a response is seen in memory,
or announced by MSI-X.
"""

from __future__ import annotations

import os
import struct
import time

from harness.agent import qat_layout as q
from harness.agent.engine import Engine
from harness.agent.nvme_memory import PAGE, QueueMemory
from harness.agent.outcome import DmaTimeout, StepError
from usdm import vfio_uapi as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

    from usdm.vfio import Container, Device

ENTRIES = 64
_REQUEST_PAGE, _RESPONSE_PAGE, _LIST_PAGE, _PAGES = 0, 1, 2, 4
_POLL_SECONDS = 0.0002


class NotQat(StepError):
    """The device does not answer as the QAT-like device."""


class Response:
    """How a request ended.

    Attributes:
        code: A number of `qat_layout`: DONE, READ_REFUSED, WRITE_REFUSED, INVALID.
        result: What the operation gave.
        address: The first IOVA that was refused.
        opaque: As in the request.
    """

    __slots__ = ("address", "code", "opaque", "result")

    def __init__(self, code: int, result: int, address: int, opaque: int) -> None:
        self.code, self.result, self.address, self.opaque = code, result, address, opaque


class Qat(Engine):
    """An open device: memory space on, bus master off, rings set up."""

    def __init__(self, device: Device, container: Container) -> None:
        """Take the device over; it is closed when that fails.

        Args:
            device: The VFIO device.
            container: Where its group is; the rings are mapped there.
        """
        super().__init__(device)
        self._event = -1
        self._bar: mmap.mmap | None = None
        self._words: memoryview | None = None
        self._memory: QueueMemory | None = None
        self._opaque = 0
        try:
            device.set_bus_master(False)
            self._bar = device.map_region(uapi.PCI_BAR0_REGION)
            self._words = memoryview(self._bar).cast("I")
            if self._words[q.ID // 4] != q.ID_VALUE:
                raise NotQat(f"{device.bdf} identifies itself as {self._words[0]:#x}")
            self._memory = QueueMemory(container, device.bdf, _PAGES)
            self._requests = self._memory.page(_REQUEST_PAGE)
            self._responses = self._memory.page(_RESPONSE_PAGE)
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            device.set_irqs(uapi.PCI_MSIX_IRQ, [self._event, self._event])
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        words, memory = self._words, self._memory
        self._responses[:] = struct.pack("<I", q.EMPTY) * (PAGE // 4)
        self._tail = self._head = 0
        for ring, page, entry in ((q.RING_REQUEST, 0, 64), (q.RING_RESPONSE, 1, 32)):
            base = memory.addresses[page]
            words[q.RING_LBASE // 4 + ring] = base & 0xFFFF_FFFF
            words[q.RING_UBASE // 4 + ring] = base >> 32
            words[q.RING_HEAD // 4 + ring] = 0
            words[q.RING_TAIL // 4 + ring] = 0
            words[q.RING_CONFIG // 4 + ring] = q.RING_ENABLE | 6

    def submit(self, opcode, flags=0, source=0, destination=0, ss=0, ds=0, operand=0, ring=True):
        self._opaque += 1
        q.REQUEST.pack_into(self._requests, self._tail, opcode, flags, 0, 0, source, destination, ss, ds, operand, self._opaque)
        self._tail = (self._tail + 64) % (64 * ENTRIES)
        if ring:
            self._words[q.RING_TAIL // 4] = self._tail
        return self._opaque

    def collect(self, seconds=10.0):
        end = time.monotonic() + seconds
        at = self._head
        view = self._responses
        while True:
            first = int.from_bytes(view[at:at+4], "little"); last = int.from_bytes(view[at+28:at+32], "little")
            if first != q.EMPTY and last != q.EMPTY:
                break
            if time.monotonic() > end:
                raise DmaTimeout(f"no response, status {self._words[2]:#x} err {self._words[5]}")
            time.sleep(0)
        code, _, result, address, opaque = q.RESPONSE.unpack_from(view, at)
        view[at:at+32] = b"\x7f" * 32
        self._head = (self._head + 32) % (32 * ENTRIES)
        return Response(code, result, address, opaque)

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool, seconds: float = 10.0) -> None:
        if write:
            self.submit(q.STORE, destination=iova, ds=size, operand=device_offset)
        else:
            self.submit(q.LOAD, source=iova, ss=size, operand=device_offset)
        r = self.collect(seconds)

    def close(self) -> None:
        if self._words is not None: self._words.release(); self._words = None
        if self._bar is not None: self._bar.close(); self._bar = None
        memory, self._memory = self._memory, None
        try:
            if memory is not None: memory.close()
        finally:
            self.device.close()
            if self._event >= 0: os.close(self._event); self._event = -1
