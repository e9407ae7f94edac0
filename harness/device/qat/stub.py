"""The stub itself: configuration space, registers, rings, and the worker that begins when the driver rings."""

from __future__ import annotations

import mmap
from typing import ClassVar

from harness.device.config import Acs, Identity, Msix, Pcie
from harness.device.model import Model
from harness.device.qat import layout as q
from harness.device.qat.layout import Cause, Status
from harness.device.qat.misbehave import Misbehaviour
from harness.device.qat.ring import Listener, Ring
from harness.device.qat.work import Counters, Parts, Worker
from harness.device.registers import Register

_CAPABILITIES = (Pcie(), Msix(q.VECTORS, q.BAR, q.MSIX_TABLE, q.MSIX_PENDING), Acs())


class QatPf(Model):
    """A PF, 8086:4940.

    Attributes:
        misbehaviour: what it has been told to do wrong.
        counters: what it has done.
        local: its own bytes.
    """

    identity: ClassVar[Identity] = Identity(q.VENDOR, q.PF, q.CLASS_CODE, revision=0x40, capabilities=_CAPABILITIES)

    def build(self) -> None:
        """Lay the BAR out as docs/qat-device.md says."""
        self.misbehaviour = Misbehaviour()
        self.counters = Counters()
        self.local = _zeros()
        self._worker: Worker | None = None
        bar = self.bar(q.BAR, q.BAR_SIZE)
        for offset, name, value in (
            (q.ID, "ID", q.ID_VALUE),
            (q.VERSION, "VERSION", q.VERSION_VALUE),
            (q.LONGEST, "LONGEST", q.LONGEST_VALUE),
            (q.LOCAL_SIZE, "LOCAL_SIZE", q.LOCAL_BYTES),
        ):
            bar.add(offset, Register(name, reset=value))
        for offset, name, read in (
            (q.REQUESTS, "REQUESTS", lambda: self.counters.requests),
            (q.RESPONSES, "RESPONSES", lambda: self.counters.responses),
            (q.BYTES_READ, "BYTES_READ", lambda: self.dma.log.bytes_read),
            (q.BYTES_WRITTEN, "BYTES_WRITTEN", lambda: self.dma.log.bytes_written),
            (q.DMA_ERRORS, "DMA_ERRORS", lambda: self.dma.log.errors),
            (q.INTERRUPTS, "INTERRUPTS", lambda: self.counters.interrupts),
            (q.RESETS, "RESETS", lambda: self.counters.resets),
        ):
            bar.add(offset, Register(name, 8, read=read))
        bar.add(q.STATUS, Register("STATUS", read=self._status))
        self._error = bar.add(q.ERROR, Register("ERROR"))
        self._error_address = bar.add(q.ERROR_ADDRESS, Register("ERROR_ADDRESS", 8))
        listener = Listener(self._look, self._die)
        self._requests = Ring(bar, q.RING_REQUEST, q.REQUEST_SIZE, listener)
        self._responses = Ring(bar, q.RING_RESPONSE, q.RESPONSE_SIZE, listener)
        bar.add(q.RING_E_STAT, Register("RING_E_STAT", read=self._empty))
        self._enable = bar.add(q.RING_INT_ENABLE, Register("RING_INT_ENABLE", writable=True))

    # ---- registers

    def _status(self) -> int:
        fatal = self._error.value != Cause.NONE
        return int(Status.READY | (Status.BUSY if self._worker else 0) | (Status.FATAL if fatal else 0))

    def _empty(self) -> int:
        return self._requests.empty << q.RING_REQUEST | self._responses.empty << q.RING_RESPONSE

    def on_reset(self) -> None:
        """Forget rings, errors and the device's own bytes; the counters go on."""
        self.counters.resets += 1
        self._worker = None
        self._requests.reset()
        self._responses.reset()
        self.local.close()
        self.local = _zeros()
        self.misbehaviour.clear()

    # ---- work

    def _look(self) -> None:
        """The driver did something about a ring: begin to work, or go on."""
        if self._worker is not None:
            self._worker.look()
        elif (
            self._requests.enabled
            and self._responses.enabled
            and not self._requests.empty
            and self._error.value == Cause.NONE
        ):
            parts = Parts(
                self.dma,
                self._requests,
                self._responses,
                self.local,
                self.misbehaviour,
                self.counters,
                self.start,
                self._signal,
                self._die,
            )
            self._worker = Worker(parts)
            self.start(self._work(self._worker))

    async def _work(self, worker: Worker) -> None:
        try:
            await worker.run()
        finally:
            # After a reset there may be another one already.
            mine = self._worker is worker
            if mine:
                self._worker = None
        if mine:
            self._look()  # the driver may have rung, or enabled other rings, meanwhile

    def _signal(self) -> None:
        """An interrupt for all responses since the last one."""
        lost, self.misbehaviour.lose_interrupt = self.misbehaviour.lose_interrupt, False
        if not lost:
            self._interrupt(q.RESPONSE_VECTOR)

    def _interrupt(self, vector: int) -> None:
        if self._enable.value & 1 << vector and self.interrupt(vector):
            self.counters.interrupts += 1

    def _die(self, cause: Cause, where: int) -> None:
        """Nothing more until a reset: the rings cannot be reached, or make no sense."""
        if self._error.value != Cause.NONE:
            return
        self._error.value, self._error_address.value = cause, where
        if self._worker is not None:
            self._worker.end()
        self._interrupt(q.ERROR_VECTOR)


def _zeros() -> mmap.mmap:
    """The device's own bytes, which take memory where they have been written only."""
    return mmap.mmap(-1, q.LOCAL_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class QatVf(QatPf):
    """A VF, 8086:4941: a function of its own, which no PF switches on."""

    identity: ClassVar[Identity] = Identity(q.VENDOR, q.VF, q.CLASS_CODE, revision=0x40, capabilities=_CAPABILITIES)
