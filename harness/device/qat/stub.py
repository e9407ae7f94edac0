"""The stub itself: registers, rings, and requests done one after the other."""

from __future__ import annotations

from typing import ClassVar

from harness.device.config import Acs, Identity, Msix, Pcie
from harness.device.dma import DmaError
from harness.device.model import Model
from harness.device.qat import layout as q
from harness.device.qat.layout import Code, Status
from harness.device.qat.memory import StubMemory
from harness.device.qat.misbehave import Misbehaviour
from harness.device.qat.operations import Invalid, Request, parse, perform
from harness.device.qat.ring import Ring
from harness.device.registers import Register
from harness.device.wire import Access

_CAPABILITIES = (Pcie(), Msix(q.VECTORS, q.BAR, q.MSIX_TABLE, q.MSIX_PENDING), Acs())


class QatPf(Model):
    """A PF, 8086:4940.

    Attributes:
        misbehaviour: what it has been told to do wrong.
    """

    identity: ClassVar[Identity] = Identity(q.VENDOR, q.PF, q.CLASS_CODE, revision=0x40, capabilities=_CAPABILITIES)

    def build(self) -> None:
        """Lay the BAR out as docs/qat-device.md says."""
        self.misbehaviour = Misbehaviour()
        self._resets = 0
        bar = self.bar(q.BAR, q.BAR_SIZE)
        for offset, name, value in (
            (q.ID, "ID", q.ID_VALUE),
            (q.VERSION, "VERSION", q.VERSION_VALUE),
            (q.LONGEST, "LONGEST", q.LONGEST_VALUE),
            (q.LOCAL_SIZE, "LOCAL_SIZE", q.LOCAL_BYTES),
        ):
            bar.add(offset, Register(name, reset=value))
        bar.add(q.STATUS, Register("STATUS", read=self._status))
        self._error = bar.add(q.ERROR, Register("ERROR"))
        self._error_address = bar.add(q.ERROR_ADDRESS, Register("ERROR_ADDRESS", 8))
        self._requests = bar.add(q.REQUESTS, Register("REQUESTS", 8))
        self._responses = bar.add(q.RESPONSES, Register("RESPONSES", 8))
        bar.add(q.BYTES_READ, Register("BYTES_READ", 8, read=lambda: self.dma.log.bytes_read))
        bar.add(q.BYTES_WRITTEN, Register("BYTES_WRITTEN", 8, read=lambda: self.dma.log.bytes_written))
        bar.add(q.DMA_ERRORS, Register("DMA_ERRORS", 8, read=lambda: self.dma.log.errors))
        self._interrupts_sent = bar.add(q.INTERRUPTS, Register("INTERRUPTS", 8))
        bar.add(q.RESETS, Register("RESETS", 8, read=lambda: self._resets))
        self._request_ring = Ring(bar, q.RING_REQUEST, q.REQUEST_SIZE, on_tail=self._doorbell)
        self._response_ring = Ring(bar, q.RING_RESPONSE, q.RESPONSE_SIZE)
        bar.add(q.RING_E_STAT, Register("RING_E_STAT", read=self._empty))
        self._enable = bar.add(q.RING_INT_ENABLE, Register("RING_INT_ENABLE", writable=True))
        self._working = False
        self._fatal = False
        self.local = bytearray(q.LOCAL_BYTES)

    # ---- registers

    def _status(self) -> int:
        if self.misbehaviour.silent:
            return int(Status.READY | Status.BUSY)
        return int(Status.READY | (Status.BUSY if self._working else 0) | (Status.FATAL if self._fatal else 0))

    def _empty(self) -> int:
        return self._request_ring.empty << q.RING_REQUEST | self._response_ring.empty << q.RING_RESPONSE

    def on_reset(self) -> None:
        """Forget rings, errors and the device's own bytes."""
        self._resets += 1
        self._working = self._fatal = False
        self.local = bytearray(q.LOCAL_BYTES)
        self.misbehaviour.clear()

    # ---- requests

    def _doorbell(self) -> None:
        if not self._working and not self._fatal and self._request_ring.enabled and self._response_ring.enabled:
            self._working = True
            self.start(self._work())

    async def _work(self) -> None:
        """Do requests until there are none."""
        requests = self._request_ring
        try:
            while not requests.empty:
                try:
                    data = await self.dma.read(requests.head_address, requests.contiguous)
                except DmaError as error:
                    self._die(error)
                    return
                for at in range(0, len(data), q.REQUEST_SIZE):
                    if not await self._one(parse(data[at : at + q.REQUEST_SIZE])):
                        return
                    requests.advance_head()
            self._signal()
        finally:
            self._working = False

    async def _one(self, request: Request) -> bool:
        """Do a request and say how it ended; False when the device cannot go on."""
        self._requests.value += 1
        misbehaviour = self.misbehaviour.take()
        if misbehaviour.how == "stop_answering":
            await self.misbehaviour.forever()
        memory = StubMemory(self.dma, misbehaviour, self.misbehaviour)
        code, result, address = Code.DONE, 0, 0
        try:
            result = await perform(request, memory, self.local)
        except DmaError as error:
            refused_read = error.transfer.access is Access.READ
            code, address = (Code.READ_REFUSED if refused_read else Code.WRITE_REFUSED), error.iova
        except Invalid:
            code = Code.INVALID
        self.misbehaviour.remember(request)
        response = q.RESPONSE.pack(code, 0, result, address, request.opaque)
        for _ in range(2 if misbehaviour.how == "complete_twice" else 1):
            if not await self._respond(response):
                return False
        if misbehaviour.how == "lose_interrupt":
            self.misbehaviour.lose_interrupt = True
        return True

    async def _respond(self, response: bytes) -> bool:
        ring = self._response_ring
        try:
            await self.dma.write(ring.tail_address, response)
        except DmaError as error:
            self._die(error)
            return False
        ring.advance_tail()
        self._responses.value += 1
        return True

    def _signal(self) -> None:
        """An interrupt for all responses since the last one."""
        lost, self.misbehaviour.lose_interrupt = self.misbehaviour.lose_interrupt, False
        if self._enable.value & 1 << q.RING_RESPONSE and not lost and self.interrupt(q.RING_RESPONSE):
            self._interrupts_sent.value += 1

    def _die(self, error: DmaError) -> None:
        """The rings themselves cannot be reached: nothing more until a reset."""
        self._fatal = True
        self._error.value = error.transfer.error
        self._error_address.value = error.iova


class QatVf(QatPf):
    """A VF, 8086:4941: a function of its own, which no PF switches on."""

    identity: ClassVar[Identity] = Identity(q.VENDOR, q.VF, q.CLASS_CODE, revision=0x40, capabilities=_CAPABILITIES)
