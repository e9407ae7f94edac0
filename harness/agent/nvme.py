"""User-space driver for NVMe controllers, PF or VF, through VFIO (NVM Express Base Specification 2.0).

The device has a namespace of its own bytes, in sectors, and copies them to memory (Read) or from memory (Write). A
controller reads its commands from queues in memory and writes its completions there, so it does nothing at all unless
it may access memory; it is started at the first use. It completes a command with success also where the IOMMU refused
the data: completion is the device's word only, and whether bytes arrived is seen in memory and in the fault records.
Only where the IOMMU keeps the queues themselves from it does it say so (CSTS.CFS).
"""

from __future__ import annotations

import os
import struct
import time

from harness.agent.mapped import MappedEngine
from harness.agent.nvme_queue import ENTRIES, QueuePair
from harness.agent.outcome import DmaAddress, DmaLength, DmaTimeout, StepError
from harness.agent.queue_memory import PAGE, QueueMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from harness.agent.queue_memory import DmaSpace
    from usdm.vfio import Device

CLASS_CODE = 0x010802
NAMESPACE = 1

# registers, as indexes of words of 4 bytes
_CAP, _CC, _CSTS, _AQA, _ASQ, _ACQ, _DOORBELLS = 0, 5, 7, 9, 10, 12, 0x1000 // 4
_ENABLE = 1
# Entries of 2^6 bytes of submission queues, of 2^4 bytes of completion queues; pages of 4 KiB; the NVM command set.
_CONFIGURATION = 6 << 16 | 4 << 20 | _ENABLE
_READY, _FATAL = 1, 2
_GONE = 0xFFFF_FFFF

_CREATE_SQ, _CREATE_CQ, _IDENTIFY, _SET_FEATURES = 0x01, 0x05, 0x06, 0x09
_WRITE, _READ = 0x01, 0x02
_IDENTIFY_NAMESPACE, _IDENTIFY_CONTROLLER = 0, 1
_NUMBER_OF_QUEUES = 7
_CONTIGUOUS = 1
_MDTS_AT, _CNTLID_AT = 77, 78

# pages of the queue memory: two for each pair of queues, and two more
_ADMIN_PAGES, _IO_PAGES = (0, 1), (2, 3)
_LIST_PAGE, _ANSWER_PAGE, _PAGES = 4, 5, 6
_LIST_ENTRIES = PAGE // 8 - 1
# The list's last entry tells whose the queues are: a forked child and its parent each know only their own commands.
_OWNER = _LIST_ENTRIES


class NotNvme(StepError):
    """The device does not answer as an NVMe controller, or not as one that this driver can use."""


class NvmeStatus(StepError):
    """The controller completed a command with an error."""


class Nvme(MappedEngine):
    """An open NVMe controller: memory space on, bus master off, stopped.

    Attributes:
        controller: Its identifier in the subsystem (CNTLID), once started.
        size: Bytes of the namespace, once started.
        sector: Bytes of a sector, once started.
        longest: Bytes that a command can copy, once started.
    """

    def __init__(self, device: Device, container: DmaSpace) -> None:
        """Take the device over; it is closed when that fails.

        Args:
            device: The VFIO device.
            container: Where its group is; the queues are mapped there.

        Raises:
            NotNvme: It does not answer as a controller.
            NoQueueMemory: See `harness.agent.queue_memory`.
            usdm.errors.UsdmError: VFIO refused something.
        """
        super().__init__(device)
        self.controller = self.size = self.sector = self.longest = 0
        self._memory: QueueMemory | None = None
        self._running = False
        self._end = 0.0
        self._seconds = 0.0
        try:
            device.set_bus_master(False)
            self._map("I")
            self._stop()
            self._memory = QueueMemory(container, device.bdf, _PAGES)
            self._admin, self._io = (
                QueuePair(self._memory.page(commands), self._memory.page(completions, "I"))
                for commands, completions in (_ADMIN_PAGES, _IO_PAGES)
            )
            self._list = self._memory.page(_LIST_PAGE, "Q")
            self._answer = self._memory.page(_ANSWER_PAGE)
        except BaseException:
            self.close()
            raise

    # ---- the controller

    def _queue_memory(self) -> QueueMemory:
        if self._memory is None:
            raise ValueError("the device has been closed")
        return self._memory

    def _stop(self) -> None:
        """Disable the controller, which ends all it does with memory; raises `NotNvme`."""
        registers = self._words()
        self._running = False
        registers[_CC] = 0
        self._wait_ready(0)

    def _wait_ready(self, ready: int) -> None:
        """Wait until CSTS.RDY is as wanted, as long as CAP.TO allows, in units of 500 ms; raises `NotNvme`."""
        registers = self._words()
        end = time.monotonic() + 0.5 * ((registers[_CAP] >> 24) + 1)
        while (status := registers[_CSTS]) & _READY != ready:
            if status == _GONE:
                raise NotNvme(f"{self.device.bdf} does not answer")
            if status & _FATAL and ready:
                raise NotNvme(f"{self.device.bdf} cannot be enabled: CSTS {status:#x}. A VF must be online first")
            if time.monotonic() >= end:
                raise NotNvme(f"{self.device.bdf} is not {'ready' if ready else 'stopped'} in time: CSTS {status:#x}")

    def start(self, seconds: float = 10.0) -> None:
        """Reset the controller, enable it and make its queues; nothing where it runs already for this process.

        Raises:
            NotNvme: It does not become ready: a VF that is not online.
            DmaTimeout: It cannot reach its queues: bus mastering is off, or the IOMMU refuses them.
            NvmeStatus: It refused a command.
        """
        if self._is_running():
            return
        self._stop()
        self._end, self._seconds = time.monotonic() + seconds, seconds
        registers, memory = self._words(), self._queue_memory()
        stride = (4 << (registers[_CAP + 1] & 0xF)) // 4
        self._admin.begin(registers, _DOORBELLS, _DOORBELLS + stride)
        registers[_AQA] = ENTRIES - 1 << 16 | ENTRIES - 1
        for register, page in ((_ASQ, _ADMIN_PAGES[0]), (_ACQ, _ADMIN_PAGES[1])):
            address = memory.addresses[page]
            registers[register], registers[register + 1] = address & 0xFFFF_FFFF, address >> 32
        registers[_CC] = _CONFIGURATION
        self._wait_ready(1)
        self._identify()
        self.admin(_SET_FEATURES, dwords=(_NUMBER_OF_QUEUES, 0, 0, 0, 0, 0))
        queue, size = 1, ENTRIES - 1 << 16
        first, second = (memory.addresses[page] for page in _IO_PAGES)
        self.admin(_CREATE_CQ, prp1=second, dwords=(size | queue, _CONTIGUOUS, 0, 0, 0, 0))
        self.admin(_CREATE_SQ, prp1=first, dwords=(size | queue, queue << 16 | _CONTIGUOUS, 0, 0, 0, 0))
        tail = _DOORBELLS + 2 * queue * stride
        self._io.begin(registers, tail, tail + stride)
        self._list[_OWNER] = os.getpid()
        self._running = True

    def _is_running(self) -> bool:
        return self._running and self._list[_OWNER] == os.getpid()

    def reset(self) -> None:
        """Reset the function; the controller is started again at the next use. Raises `usdm.errors.DeviceError`."""
        self._running = False
        self.device.reset()

    def restart(self) -> None:
        """Reset the controller and start it again; raises as `start`."""
        self._running = False
        self.start()

    def _identify(self) -> None:
        about = self.identify(_IDENTIFY_CONTROLLER)
        (self.controller,) = struct.unpack_from("<H", about, _CNTLID_AT)
        listed = _LIST_ENTRIES * PAGE
        self.longest = min(PAGE << about[_MDTS_AT], listed) if about[_MDTS_AT] else listed
        about = self.identify(_IDENTIFY_NAMESPACE, namespace=NAMESPACE)
        (sectors,) = struct.unpack_from("<Q", about)
        (lba_format,) = struct.unpack_from("<I", about, 128 + 4 * (about[26] & 0xF))
        if not sectors:
            raise NotNvme(f"{self.device.bdf} has no namespace {NAMESPACE}")
        self.sector = 1 << (lba_format >> 16 & 0xFF)
        self.size = sectors * self.sector

    # ---- commands

    def _check(self) -> None:
        """Look whether a completion can still come; raises `DmaTimeout` when not."""
        status = self._words()[_CSTS]
        if status == _GONE:
            self._give_up("does not answer")
        if status & _FATAL:
            why = "" if self.bus_master else ": bus mastering is off"
            self._give_up(f"cannot reach its queues (CSTS.CFS){why}")
        if not status & _READY:
            self._give_up("is stopped: it was reset, or its PF took it offline")
        if time.monotonic() >= self._end:
            self._give_up(f"completed nothing in {self._seconds:g} s")

    def _give_up(self, why: str) -> NoReturn:
        """Stop the controller, so that it cannot do later what was asked now; raises `DmaTimeout`."""
        error = DmaTimeout(f"the controller {self.device.bdf} {why}")
        try:
            self._stop()
        except NotNvme as other:
            raise error from other
        raise error

    def admin(
        self,
        opcode: int,
        *,
        namespace: int = 0,
        prp1: int = 0,
        dwords: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0),
        seconds: float = 10.0,
    ) -> int:
        """Run an admin command on an enabled controller and return dword 0 of its completion.

        Raises:
            NvmeStatus: The controller refused.
            DmaTimeout: It did not complete.
        """
        self._end, self._seconds = time.monotonic() + seconds, seconds
        status, result = self._admin.run(opcode, self._check, namespace=namespace, prp1=prp1, dwords=dwords)
        if status:
            raise self._refusal(f"admin command {opcode:#04x}", status)
        return result

    def identify(self, what: int, *, namespace: int = 0, controller: int = 0) -> bytes:
        """Run Identify and return its 4096 bytes.

        Args:
            what: Which structure (CNS).
            namespace: Of which namespace.
            controller: Of which controller, or from which on (CNTID).

        Raises:
            NvmeStatus, DmaTimeout: See `admin`.
        """
        place = self._queue_memory().addresses[_ANSWER_PAGE]
        self.admin(_IDENTIFY, namespace=namespace, prp1=place, dwords=(what | controller << 16, 0, 0, 0, 0, 0))
        return bytes(self._answer)

    def _refusal(self, what: str, status: int) -> NvmeStatus:
        return NvmeStatus(
            f"{self.device.bdf}: {what} ended with status code type {status >> 8 & 7:#x}, code {status & 0xFF:#04x}"
        )

    # ---- DMA

    def dma(self, iova: int, size: int, device_offset: int, *, write: bool, seconds: float = 10.0) -> None:
        """Have the device copy, see `Engine.dma`; it is started when it is not running.

        Args:
            iova: Where in memory, a multiple of 4.
            size: Bytes, whole sectors, up to 512 KiB of QEMU's controller.
            device_offset: Where in the namespace, at a sector.
            write: The device writes memory (Read); else it reads memory (Write).
            seconds: How long to wait.

        Raises:
            DmaLength: Not whole sectors, too many, or not inside the namespace.
            DmaAddress: The address is no multiple of 4.
            DmaTimeout: No completion in time, or the controller cannot reach its queues. It is stopped then.
            NvmeStatus: The controller refused the command.
            NotNvme: The controller cannot be started.
        """
        if not self._is_running():
            self.start(seconds)
        sector = self.sector
        if size <= 0 or size % sector or device_offset % sector:
            raise DmaLength(f"{size} bytes at {device_offset}: an NVMe controller copies whole sectors of {sector}")
        if size > self.longest or not 0 <= device_offset <= self.size - size:
            raise DmaLength(f"{size} bytes at {device_offset} of {self.size}, at most {self.longest} at once")
        if iova % 4:
            raise DmaAddress(f"{iova:#x} is no multiple of 4")
        block = device_offset // sector
        self._end, self._seconds = time.monotonic() + seconds, seconds
        status, _ = self._io.run(
            _READ if write else _WRITE,
            self._check,
            namespace=NAMESPACE,
            prp1=iova,
            prp2=self._second_prp(iova, size),
            dwords=(block & 0xFFFF_FFFF, block >> 32, size // sector - 1, 0, 0, 0),
        )
        if status:
            raise self._refusal("the DMA", status)

    def _second_prp(self, iova: int, size: int) -> int:
        """Return PRP2: 0 for one page, the second page's address for two, else that of the list of all but the first.

        Only PRP1 may point into a page.
        """
        first = iova & -PAGE
        pages = (iova + size - 1 - first) // PAGE
        if pages <= 1:
            return first + PAGE if pages else 0
        for number in range(pages):
            self._list[number] = first + (number + 1) * PAGE
        return self._queue_memory().addresses[_LIST_PAGE]

    # ---- the end

    def close(self) -> None:
        """Stop the controller, take its queues away and close the device; may be called twice.

        Raises:
            usdm.errors.UnmapFailed: The kernel refused to take the queues' mapping away.
        """
        self._running = False
        if self._mapped is not None:
            self._mapped[_CC] = 0
        self._unmap()
        memory, self._memory = self._memory, None
        try:
            # Before the device: with that its group may go, and with a container's last group all its mappings.
            if memory is not None:
                memory.close()
        finally:
            self.device.close()
