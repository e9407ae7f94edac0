"""An NVMe controller and its container for tests, written from the specification and not from the driver."""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
from types import SimpleNamespace
from typing import Any

from usdm.errors import map_failed

PAGE = 4096
RANGES = ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1))
CAP, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000


class FakeContainer:
    """Mappings of one container, as a device sees them."""

    no_iommu = False

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, int]] = {}  # iova: address, size
        self.log: list[tuple[str, int, int]] = []
        self.taken = False

    def info(self) -> Any:
        return SimpleNamespace(iova_ranges=RANGES, dma_avail=65535)

    def map_dma(self, vaddr: int, iova: int, size: int, *, read: bool = True, write: bool = True) -> None:
        if self.taken:
            raise map_failed("virt", vaddr, 17, f"IOVA {iova:#x}")
        assert read
        assert write
        self.entries[iova] = vaddr, size
        self.log.append(("map", iova, size))

    def unmap_dma(self, iova: int, size: int) -> int:
        self.log.append(("unmap", iova, size))
        return self.entries.pop(iova)[1]

    def find(self, iova: int) -> int | None:
        for start, (address, size) in self.entries.items():
            if start <= iova < start + size:
                return address + iova - start
        return None

    def read(self, iova: int, size: int) -> bytes | None:
        address = self.find(iova)
        return None if address is None else ctypes.string_at(address, size)

    def write(self, iova: int, data: bytes) -> bool:
        address = self.find(iova)
        if address is not None:
            ctypes.memmove(address, data, len(data))
        return address is not None


class FakeNvme:
    """A controller behind the interface of `usdm.vfio.Device`: registers in memory, watched by a thread.

    Attributes:
        commands: Every command: queue, opcode, namespace, PRP1, PRP2, dwords 10 to 15.
        moved: Every piece of memory that a read or write copied: address and size.
        status: What the next I/O commands end with.
        answers: It completes commands.
        online: It can be enabled.
        seen: What was done with it, in order.
    """

    def __init__(self, container: FakeContainer, bdf: str = "02:00.0") -> None:
        self.container, self.bdf, self.fd = container, bdf, 77
        self.command = 0
        self.content = bytearray(16 << 20)
        self.commands: list[tuple[int, ...]] = []
        self.moved: list[tuple[int, int]] = []
        self.status = 0
        self.answers = self.online = True
        self.sectors = len(self.content) // 512
        self.secondaries: list[tuple[int, int]] = []
        self.primary = (0, 0)  # queues and interrupts that the PF's controller is allocated
        self.refused: set[int] = set()
        self.seen: list[str] = []
        self.stop = threading.Event()
        self.bar = mmap.mmap(-1, 16384)
        struct.pack_into("<Q", self.bar, CAP, 2 << 24 | 2047)  # two units of 500 ms, 2048 entries
        self.queues: dict[int, list[int]] = {}  # number: SQ, CQ, entries, head, tail of CQ, phase
        self.was_enabled = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    # ---- VFIO

    def set_bus_master(self, enabled: bool) -> None:
        self.command = 6 if enabled else 2

    def read(self, index: int, offset: int, size: int) -> bytes:
        assert index == 7
        return {4: self.command, 9: 0x010802}[offset].to_bytes(size, "little")

    def map_region(self, index: int) -> mmap.mmap:
        assert index == 0
        return mmap.mmap(-1, 1) if self.stop.is_set() else self.bar

    def set_vf_token(self, token: bytes) -> None:
        self.seen.append(f"token {token.hex()}")

    def close(self) -> None:
        self.seen.append(f"close, {len(self.container.entries)} mapped")
        self.fd = -1

    def end(self) -> None:
        self.stop.set()
        self.thread.join()

    # ---- the controller

    def _get(self, register: int, form: str = "<I") -> int:
        return int(struct.unpack_from(form, self.bar, register)[0])

    def _set(self, register: int, value: int) -> None:
        struct.pack_into("<I", self.bar, register, value)

    def _run(self) -> None:
        while not self.stop.wait(0.0002):
            if self.bar.closed:
                return
            enabled = bool(self._get(CC) & 1)
            if enabled != self.was_enabled:
                self.was_enabled = enabled
                self._enable() if enabled else self._disable()
            for number in list(self.queues) if enabled and not self._get(CSTS) & 2 else ():
                self._process(number)

    def _enable(self) -> None:
        if not self.online:
            self._set(CSTS, 2)
            return
        assert self._get(CC) >> 16 & 0xFF == 0x46
        assert self._get(AQA) == 63 << 16 | 63
        self.queues = {0: [self._get(ASQ, "<Q"), self._get(ACQ, "<Q"), 64, 0, 0, 1]}
        self._set(CSTS, 1)

    def _disable(self) -> None:
        self.queues = {}
        for doorbell in range(4):
            self._set(DOORBELLS + 4 * doorbell, 0)
        self._set(CSTS, 0)

    def fail(self) -> None:
        self._set(CSTS, 3)

    def _process(self, number: int) -> None:
        queue = self.queues[number]
        while queue[3] != self._get(DOORBELLS + 8 * number):
            raw = self.container.read(queue[0] + 64 * queue[3], 64) if self.command & 4 else None
            if raw is None:
                self.fail()
                return
            queue[3] = (queue[3] + 1) % queue[2]
            first, namespace, _, _, prp1, prp2, *dwords = struct.unpack("<IIQQQQ6I", raw)
            opcode, identifier = first & 0xFF, first >> 16
            self.commands.append((number, opcode, namespace, prp1, prp2, *dwords))
            if not self.answers:
                continue
            status, result = (
                self._io(opcode, prp1, prp2, dwords) if number else self._admin(opcode, namespace, prp1, dwords)
            )
            entry = struct.pack("<IIHHI", result, 0, queue[3], number, identifier | queue[5] << 16 | status << 17)
            if not self.container.write(queue[1] + 16 * queue[4], entry):
                self.fail()
                return
            queue[4] = (queue[4] + 1) % queue[2]
            queue[5] ^= queue[4] == 0

    def _admin(self, opcode: int, namespace: int, prp1: int, dwords: list[int]) -> tuple[int, int]:
        if opcode in self.refused:
            return 0x4002, 0
        if opcode == 0x06:
            page = bytearray(4096)
            if dwords[0] & 0xFF == 1:
                page[77] = 7
                struct.pack_into("<H", page, 78, 3)
            elif dwords[0] & 0xFF == 0:
                assert namespace == 1
                struct.pack_into("<QQ", page, 0, self.sectors, self.sectors)
                struct.pack_into("<I", page, 128, 9 << 16)
            elif dwords[0] & 0xFF == 0x14:
                assert dwords[0] >> 16 == 3
                struct.pack_into("<IIH", page, 32, 32, 0, self.primary[0])
                struct.pack_into("<IIH", page, 64, 16, 0, self.primary[1])
            else:
                page[0] = len(self.secondaries)
                for at, (vf, controller) in enumerate(self.secondaries):
                    struct.pack_into("<HHB3xHHH", page, 32 * (at + 1), controller, 3, 0, vf, 0, 0)
            self.container.write(prp1, bytes(page))
        elif opcode in (0x01, 0x05):
            number, entries = dwords[0] & 0xFFFF, (dwords[0] >> 16) + 1
            assert dwords[1] & 1
            queue = self.queues.setdefault(number, [0, 0, entries, 0, 0, 1])
            queue[0 if opcode == 0x01 else 1] = prp1
        return 0, 0

    def _io(self, opcode: int, prp1: int, prp2: int, dwords: list[int]) -> tuple[int, int]:
        if self.status:
            return self.status, 0
        at, left = (dwords[0] | dwords[1] << 32) * 512, (dwords[2] + 1) * 512
        for address, size in self._pieces(prp1, prp2, left):
            self.moved.append((address, size))
            if opcode == 0x02:
                self.container.write(address, bytes(self.content[at : at + size]))
            else:
                self.content[at : at + size] = self.container.read(address, size) or bytes(size)
            at += size
        return 0, 0

    def _pieces(self, prp1: int, prp2: int, left: int) -> list[tuple[int, int]]:
        """The memory that PRPs name (NVM Express Base Specification 2.0, 4.1.1)."""
        assert prp1 % 4 == 0
        size = min(PAGE - prp1 % PAGE, left)
        pieces, left = [(prp1, size)], left - size
        if left > PAGE:
            count = -(-left // PAGE)
            listed = self.container.read(prp2, 8 * count)
            assert listed is not None
            rest = list(struct.unpack(f"<{count}Q", listed))
        else:
            rest = [prp2] if left else []
        for address in rest:
            assert address % PAGE == 0
            size = min(PAGE, left)
            pieces.append((address, size))
            left -= size
        assert left == 0
        return pieces
