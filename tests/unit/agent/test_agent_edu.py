from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence

import pytest

from harness.agent.context import Buffer, Context
from harness.agent.edu import DeviceBusy, DmaLength, DmaTimeout, Edu, NoInterrupt, NotEdu
from harness.agent.outcome import DeviceNotOpen, NoIova, UnknownBuffer, UnknownDevice
from usdm.errors import DeviceError


class FakeDevice:
    """An edu behind the interface of `usdm.vfio.Device`: registers in memory, watched by a thread."""

    def __init__(self, identification: int = 0x010000ED, vectors: int = 1) -> None:
        self.bdf, self.fd = "02:00.0", -1
        self.identification, self.vectors = identification, vectors
        self.command = 0
        self.live = 0
        self.irq_status = 0
        self.eventfd = -1
        self.bar = mmap.mmap(-1, 1 << 20)
        self.dmas: list[tuple[int, int, int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.answers = True
        self.interrupts = True
        self.closed = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.wait(0.001):
            words = memoryview(self.bar).cast("Q")
            try:
                source, destination, count, command = (words[at // 8] for at in (0x80, 0x88, 0x90, 0x98))
                if not command & 1 or not self.answers:
                    continue
                self.dmas.append((source, destination, count, command))
                if command & 4:
                    self.irq_status |= 0x100
                words[0x98 // 8] = command & ~1
                if command & 4 and self.interrupts:
                    os.eventfd_write(self.eventfd, 1)
            finally:
                words.release()

    def set_bus_master(self, enabled: bool) -> None:
        self.command = 6 if enabled else 2

    def read(self, index: int, offset: int, size: int) -> bytes:
        if index == 7:
            assert (offset, size) == (4, 2)
            return self.command.to_bytes(2, "little")
        assert (index, size) == (0, 4)
        value = {0: self.identification, 4: self.live, 0x24: self.irq_status}[offset]
        return value.to_bytes(4, "little")

    def write(self, index: int, offset: int, data: bytes) -> None:
        assert (index, len(data)) == (0, 4)
        value = int.from_bytes(data, "little")
        self.writes.append((offset, value))
        if offset == 4:
            self.live = ~value & 0xFFFFFFFF
        if offset == 0x64:
            self.irq_status &= ~value

    def map_region(self, index: int) -> mmap.mmap:
        assert index == 0
        return self.bar

    def irq_count(self, index: int) -> int:
        assert index == 1
        return self.vectors

    def set_irqs(self, index: int, eventfds: Sequence[int] = ()) -> None:
        if self.vectors > 1:
            raise DeviceError("device", self.bdf, 22, "DEVICE_SET_IRQS")
        (self.eventfd,) = eventfds

    def close(self) -> None:
        self.closed += 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def fake() -> Iterator[FakeDevice]:
    one = FakeDevice()
    yield one
    one.end()


@pytest.fixture
def edu(fake: FakeDevice) -> Iterator[Edu]:
    one = Edu(fake)  # type: ignore[arg-type]
    yield one
    fake.end()
    one.close()


def test_opened_with_memory_space_and_without_bus_master(fake: FakeDevice, edu: Edu) -> None:
    assert fake.command == 2
    assert edu.bus_master is False
    edu.set_bus_master(True)
    assert edu.bus_master is True


def test_dma_with_an_interrupt(fake: FakeDevice, edu: Edu) -> None:
    edu.set_bus_master(True)
    edu.dma(0x1234_5678_9ABC, 64, 32, write=False)
    edu.dma(0xFFFF_FFFF_FFFF_F000, 4096, 0, write=True)
    assert fake.dmas == [(0x1234_5678_9ABC, 0x40020, 64, 1 | 4), (0x40000, 0xFFFF_FFFF_FFFF_F000, 4096, 1 | 2 | 4)]
    assert fake.writes[-2:] == [(0x64, 0x100), (0x64, 0x100)]
    assert fake.irq_status == 0


def test_dma_without_bus_master_waits_for_the_status(fake: FakeDevice, edu: Edu) -> None:
    edu.dma(0x1000, 16, 0, write=True)
    assert fake.dmas == [(0x40000, 0x1000, 16, 1 | 2)]


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (-1, 0), (4097, 0), (1, 4096), (4096, 1), (2, 4095), (1, -1)])
def test_lengths_beyond_the_buffer_never_reach_the_device(fake: FakeDevice, edu: Edu, size: int, offset: int) -> None:
    edu.set_bus_master(True)
    written = len(fake.writes)
    with pytest.raises(DmaLength):
        edu.dma(0x1000, size, offset, write=True)
    assert (fake.dmas, len(fake.writes)) == ([], written)
    assert fake.bar[0x80:0xA0] == bytes(0x20)


@pytest.mark.parametrize("bus_master", [False, True])
def test_a_dma_that_does_not_end(fake: FakeDevice, edu: Edu, bus_master: bool) -> None:
    fake.answers = False
    edu.set_bus_master(bus_master)
    with pytest.raises(DmaTimeout, match="still set"):
        edu.dma(0x1000, 16, 0, write=False, seconds=0.05)
    with pytest.raises(DeviceBusy):
        edu.dma(0x1000, 16, 0, write=False)


def test_a_late_interrupt_is_not_taken_for_the_next_one(fake: FakeDevice, edu: Edu) -> None:
    edu.set_bus_master(True)
    fake.interrupts = False
    with pytest.raises(DmaTimeout, match="run bit is clear"):
        edu.dma(0x1000, 16, 0, write=False, seconds=0.2)
    os.eventfd_write(fake.eventfd, 1)
    fake.interrupts = True
    edu.dma(0x2000, 16, 0, write=False)
    assert len(fake.dmas) == 2


@pytest.mark.parametrize(
    ("fake_args", "error"),
    [({"identification": 0x01000000}, NotEdu), ({"vectors": 0}, NoInterrupt), ({"vectors": 2}, NoInterrupt)],
)
def test_what_cannot_be_used_is_closed(fake_args: dict[str, int], error: type[Exception]) -> None:
    fake = FakeDevice(**fake_args)
    fake.end()
    with pytest.raises(error):
        Edu(fake)  # type: ignore[arg-type]
    assert fake.closed == 1


def test_closing_twice_is_harmless(fake: FakeDevice, edu: Edu) -> None:
    fake.end()
    edu.close()
    edu.close()
    assert fake.bar.closed


# ---- what steps name


def test_the_iova_of_a_step() -> None:
    context = Context()
    buffer = context.buffers["a"] = Buffer("a", "buffer", 0x7000, 4096)
    with pytest.raises(NoIova, match="neither"):
        context.iova({"buffer": "a", "offset": 0})
    buffer.iova = 0x200000
    assert context.iova({"buffer": "a", "offset": -4096}) == 0x1FF000
    assert context.iova({"iova": 0, "offset": 0}) == 0
    with pytest.raises(NoIova, match="64-bit"):
        context.iova({"buffer": "a", "offset": -0x200001})
    with pytest.raises(UnknownBuffer):
        context.iova({"buffer": "b"})


def test_devices_by_name() -> None:
    context = Context()
    for use, error in ((context.device, DeviceNotOpen), (context.close_device, DeviceNotOpen)):
        with pytest.raises(error):
            use("edu0")
    with pytest.raises(UnknownDevice):
        context.open_device("edu0")
    with pytest.raises(DeviceNotOpen):
        context.any_device()
