"""User-space driver for the QAT-like device (8086:4940 and 4941) through VFIO; docs/qat-device.md is its reference.

The device takes requests from a ring in memory and puts responses into another one. Each response says whether the
IOMMU refused a DMA, and which address. Requests are handed over by a write to a register; a response is seen in memory,
or announced by MSI-X. The rings are set up at the first use, and anew after a reset or in another process.
"""

from __future__ import annotations

import os
import time

from harness.agent import qat_layout as q
from harness.agent.engine import Completion
from harness.agent.mapped import MappedEngine
from harness.agent.outcome import DeviceBusy, DmaAddress, DmaLength, DmaTimeout, NotQat
from harness.agent.qat_lists import Lists
from harness.agent.qat_responses import GONE, PAUSE_SECONDS, Responses, is_busy, is_gone
from harness.agent.qat_ring import MOST_IN_FLIGHT, Response, Rings
from harness.agent.queue_memory import PAGE, QueueMemory
from usdm import vfio_uapi as uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.agent.queue_memory import DmaSpace
    from usdm.vfio import Device

_REQUEST_PAGE, _RESPONSE_PAGE, _LIST_PAGES, _PAGES = 0, 1, range(2, 14), 14
# The last word of the responses' page tells whose the rings are: a forked child and its parent know their own.
_OWNER = PAGE // 8 - 1
_ADDRESSES = 1 << 64
# So long a device that is closed may still be busy before it is reset.
_REST_SECONDS = 1.0


class Qat(MappedEngine):
    """An open device: memory space on, bus master off.

    Attributes:
        longest: Bytes that one request can be about.
        size: Bytes of the device's own.
        name: Its PCI address, for messages.
        events: An eventfd for each vector.
    """

    def __init__(self, device: Device, container: DmaSpace) -> None:
        """Take the device over; it is closed when that fails.

        Args:
            device: The VFIO device.
            container: Where its group is; the rings are mapped there.

        Raises:
            NotQat: It does not answer as the QAT-like device.
            NoQueueMemory: See `harness.agent.queue_memory`.
            usdm.errors.UsdmError: VFIO refused something.
        """
        super().__init__(device)
        self.longest = self.size = 0
        self.name = device.bdf
        self.events: list[int] = []
        self._responses = Responses(self)
        self._memory: QueueMemory | None = None
        self._rings: Rings | None = None
        self._running = False
        self._number = 0
        self._forget()
        try:
            device.set_bus_master(False)
            registers = self._map("I")
            found = registers[q.ID // 4]
            if found != q.ID_VALUE:
                said = "does not answer" if found in (0, GONE) else f"identifies itself as {found:#x}"
                raise NotQat(f"{device.bdf} {said}")
            self.longest, self.size = registers[q.LONGEST // 4], registers[q.LOCAL_SIZE // 4]
            memory = self._memory = QueueMemory(container, device.bdf, _PAGES)
            self._owner = memory.page(_RESPONSE_PAGE, "Q")
            self._rings = Rings(memory.page(_REQUEST_PAGE), memory.page(_RESPONSE_PAGE))
            self._lists = Lists([memory.page(n) for n in _LIST_PAGES], [memory.addresses[n] for n in _LIST_PAGES])
            # One for each vector: the kernel can hand an eventfd's interrupts on for one only.
            for _ in range(q.VECTORS):
                self.events.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            device.set_irqs(uapi.PCI_MSIX_IRQ, self.events)
        except BaseException:
            self.close()
            raise

    # ---- the device

    def _forget(self) -> None:
        """No request is on its way any more."""
        self._responses.forget()
        self._interrupts = False
        self._hangs = False  # it was given up: whatever it is at takes too long

    def start(self, seconds: float = 10.0) -> None:
        """Set the rings up, empty; nothing where they are already for this process.

        Raises:
            DmaTimeout: The device is still busy with older ones, or does nothing before a reset.
        """
        if self._is_running() or self._rings is None or self._memory is None:
            self._words()
            return
        self._stop()
        end = time.monotonic() + seconds
        while is_gone(status := self._words()[q.STATUS // 4]) or status & (q.BUSY | q.FATAL):
            if is_gone(status) or status & q.FATAL or time.monotonic() >= end:
                self._hangs = True
                raise DmaTimeout(f"the rings cannot be set up: {self.state()}")
            time.sleep(PAUSE_SECONDS)
        self._forget()
        self._lists.give_all_back()
        addresses = self._memory.addresses
        self._words()[q.RING_INT_ENABLE // 4] = 0
        self._rings.begin(self._words(), addresses[_REQUEST_PAGE], addresses[_RESPONSE_PAGE])
        self._owner[_OWNER] = os.getpid()
        self._running = True

    def _is_running(self) -> bool:
        return self._running and self._owner[_OWNER] == os.getpid()

    def _stop(self) -> None:
        """Disable both rings: no request begins any more, and no response is written."""
        self._running = False
        for ring in (q.RING_REQUEST, q.RING_RESPONSE):
            self._words()[q.RING_CONFIG // 4 + ring] = 0

    def reset(self) -> None:
        """Reset the function; the rings are set up anew at the next use. Raises `usdm.errors.DeviceError`."""
        self._running = False
        self._forget()
        self.device.reset()

    def counters(self) -> dict[str, int]:
        """Return what the device has counted since it was plugged in, and its state.

        Raises:
            NotQat: It does not answer.
        """
        words = self._words()
        if words[q.ID // 4] != q.ID_VALUE:
            raise NotQat(f"{self.device.bdf} does not answer")
        names = ("requests", "responses", "bytes_read", "bytes_written", "dma_errors", "interrupts", "resets")
        first = q.REQUESTS // 4
        found = {name: words[first + 2 * n] | words[first + 2 * n + 1] << 32 for n, name in enumerate(names)}
        status = words[q.STATUS // 4]
        state = {"busy": int(bool(status & q.BUSY)), "fatal": int(bool(status & q.FATAL))}
        return {**found, **state, "error": words[q.ERROR // 4]}

    def state(self) -> str:
        """Return what STATUS and ERROR say, in words."""
        words = self._words()
        status = words[q.STATUS // 4]
        if is_gone(status):
            what = "all ones" if status == GONE else "zeros"
            return f"{self.device.bdf} does not answer, its registers read as {what}"
        bits = ((q.READY, "ready"), (q.BUSY, "busy"), (q.FATAL, "fatal"))
        said = f"{self.device.bdf} has STATUS {status:#x} ({', '.join(name for bit, name in bits if status & bit)})"
        cause = words[q.ERROR // 4]
        if cause:
            where = words[q.ERROR_ADDRESS // 4] | words[q.ERROR_ADDRESS // 4 + 1] << 32
            said += f", ERROR {cause} ({q.CAUSES[cause] if cause < len(q.CAUSES) else 'unknown'}) at {where:#x}"
        if status & q.FATAL:
            said += ", and does nothing before a reset"
            said += "" if self.bus_master else "; bus mastering is off"
        return said

    # ---- requests

    def submit(
        self,
        opcode: int,
        source: Sequence[tuple[int, int]] = (),
        destination: Sequence[tuple[int, int]] = (),
        operand: int = 0,
        *,
        source_list: int | None = None,
        destination_list: int | None = None,
        interrupt: bool = False,
        ring: bool = True,
        seconds: float = 10.0,
    ) -> int:
        """Hand a request over.

        Args:
            opcode: One of `qat_layout`.
            source: Address and bytes of each buffer that is read; several are given as a scatter list.
            destination: The same of what is written, or compared with.
            operand: FILL's byte, LOAD's and STORE's offset.
            source_list: Instead of `source`: the address of a scatter list, whatever is there.
            destination_list: The same instead of `destination`.
            interrupt: The response shall be announced by MSI-X.
            ring: Tell the device now; else a later request tells of this one too.
            seconds: How long to wait for rings, where they must be set up.

        Returns:
            The request's number, for `finish`.

        Raises:
            DmaLength: The device cannot do so many bytes, or buffers, at once.
            DmaAddress: A buffer exceeds the last address.
            DeviceBusy: Too many requests are on their way.
            DmaTimeout: The rings cannot be set up.
        """
        for pieces in (source, destination):
            self._check(pieces)
        self.start(seconds)
        rings = self._rings
        if rings is None:
            raise ValueError("the device has been closed")
        waiting = self._responses.waited_for
        if waiting >= MOST_IN_FLIGHT:
            raise DeviceBusy(f"{waiting} requests are on their way; collect responses first")
        on_again = interrupt and not self._interrupts
        if on_again or (self._interrupts and not interrupt and not waiting):
            self._words()[q.RING_INT_ENABLE // 4] = (1 << q.VECTORS) - 1 if interrupt else 0
            self._interrupts = interrupt
        if on_again or (interrupt and not waiting):
            self._responses.drain()  # nobody waits for what came before
        # Neither half of the number is ever the signature of an empty entry: it has no more than 31 bits.
        number = self._number = (self._number + 1) % q.EMPTY
        flags = 0
        places = [0, 0, 0, 0]
        try:
            for side, (pieces, flag, listed) in enumerate(
                ((source, q.SOURCE_LIST, source_list), (destination, q.DESTINATION_LIST, destination_list))
            ):
                if listed is not None:
                    flags |= flag
                    places[side] = listed
                elif len(pieces) == 1:
                    places[side], places[2 + side] = pieces[0]
                elif pieces:
                    flags |= flag
                    places[side] = self._lists.lend(number, pieces)
        except DeviceBusy:
            self._lists.give_back(number)
            raise
        rings.put(q.REQUEST.pack(opcode, flags, 0, 0, *places, operand, number))
        self._responses.expect(number)
        if ring:
            rings.ring()
        return number

    def _check(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Refuse what the device would refuse."""
        total = sum(size for _, size in pieces)
        if total > self.longest or not all(size > 0 for _, size in pieces):
            raise DmaLength(f"{total} bytes in {len(pieces)} buffers: 1 to {self.longest} at once, and no empty buffer")
        if len(pieces) > q.MOST_BUFFERS:
            raise DmaLength(f"{len(pieces)} buffers: a scatter list has at most {q.MOST_BUFFERS}")
        for address, size in pieces:
            if not 0 <= address <= _ADDRESSES - size:
                raise DmaAddress(f"{size} bytes at {address:#x} exceed the last address")

    # ---- responses

    @property
    def unasked(self) -> int:
        """Responses so far that no request of this driver waited for."""
        return self._responses.unasked

    def finish(self, number: int, *, interrupt: bool = False, seconds: float = 10.0) -> Response:
        """See `Responses.finish`."""
        return self._responses.finish(number, interrupt, seconds)

    def leave(self, number: int) -> None:
        """See `Responses.leave`."""
        self._responses.leave(number)

    def collect(self, count: int, *, interrupt: bool = False, seconds: float = 10.0) -> list[Response]:
        """See `Responses.collect`."""
        return self._responses.collect(count, interrupt, seconds)

    # ---- for `Responses`

    def rings(self) -> Rings:
        """Return the rings with this process's requests; raises `DmaTimeout` where they are lost."""
        if self._rings is None or not self._is_running():
            raise DmaTimeout("the request was lost: the rings were set up anew, by a reset or another process")
        return self._rings

    def status(self) -> int:
        """Read STATUS."""
        status: int = self._words()[q.STATUS // 4]
        return status

    def over(self, number: int) -> None:
        """Take a request's scatter lists back: its response has come."""
        self._lists.give_back(number)

    def given_up(self, why: str, *, hangs: bool) -> DmaTimeout:
        """Give the rings up; returns what to raise."""
        error = DmaTimeout(f"{why}: {self.state()}")
        self._hangs = hangs
        self._stop()
        return error

    # ---- DMA to and from the device's own bytes

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool, seconds: float = 10.0) -> Completion | None:
        """Have the device copy, see `Engine.dma`; a refused DMA is told by what this returns.

        Args:
            iova: Where in memory.
            size: Bytes, 1 to 16 MiB.
            device_offset: Where in the device's own 16 MiB.
            write: The device writes memory; else it reads memory.
            seconds: How long to wait.

        Raises:
            DmaLength: Too many bytes, or not inside the device's own.
            DmaAddress: They exceed the last address.
            DmaTimeout: No response, see `finish`.
        """
        if not 0 <= device_offset <= self.size - size:
            raise DmaLength(f"{size} bytes at {device_offset} of the device's own {self.size}")
        place = [(iova, size)]
        if write:
            number = self.submit(q.STORE, destination=place, operand=device_offset, seconds=seconds)
        else:
            number = self.submit(q.LOAD, source=place, operand=device_offset, seconds=seconds)
        return completion(self.finish(number, seconds=seconds))

    # ---- the end

    def close(self) -> None:
        """Disable the rings, take their memory away and close the device; may be called twice.

        A device that stays busy is reset before its memory goes.

        Raises:
            usdm.errors.DeviceError: It stays busy, and cannot be reset.
            usdm.errors.UnmapFailed: The kernel refused to take the rings' mapping away.
        """
        self._running = False
        try:
            if self._mapped is not None:
                self._come_to_rest(self._mapped)
        finally:
            self._let_go()

    def _come_to_rest(self, registers: memoryview) -> None:
        self._stop()
        end = time.monotonic() + (0.0 if self._hangs else _REST_SECONDS)
        while self._memory is not None and is_busy(registers[q.STATUS // 4]):
            if time.monotonic() >= end:
                self.device.reset()
                return
            time.sleep(PAUSE_SECONDS)

    def _let_go(self) -> None:
        self._unmap()
        rings, self._rings = self._rings, None
        if rings is not None:
            rings.release()
        memory, self._memory = self._memory, None
        try:
            # Before the device: with that its group may go, and with a container's last group all its mappings.
            if memory is not None:
                memory.close()
        finally:
            self.device.close()
            while self.events:
                os.close(self.events.pop())


def completion(response: Response) -> Completion:
    """What a response says, in words."""
    status = q.CODES[response.code] if response.code < len(q.CODES) else f"code {response.code}"
    refused = response.address if response.code in (q.READ_REFUSED, q.WRITE_REFUSED) else None
    reason = ""
    if response.code == q.INVALID:
        reason = q.REASONS[response.result] if response.result < len(q.REASONS) else str(response.result)
    return Completion(status, refused, reason)
