"""A process with a registered container, a device and a range, for tests of the two-step DMA mapping API."""

from __future__ import annotations

from collections.abc import Callable

from usdm_fake_vfio import Buffer, FakeVfio

from usdm import dma_iova as api
from usdm.driver import Usdm

PAGE, UNIT = 4096, 2 << 20
BOTH, TO, FROM, NONE = api.DMA_BIDIRECTIONAL, api.DMA_TO_DEVICE, api.DMA_FROM_DEVICE, api.DMA_NONE
PAD = 0x400
SIZE = 4 * PAGE - PAD  # of the range in most tests: four granules, of which the first lacks 0x400 bytes
FIRST = PAGE - PAD

Calls = list[Callable[[api.VfioDma, api.DmaIovaState], object]]


class Case:
    """A registered container, a device, a buffer of 16 pages, and a range with links of one page each."""

    def __init__(self, vfio: FakeVfio, usdm: Usdm, fd: int, buffer: Buffer) -> None:
        self.vfio, self.usdm, self.fd = vfio, usdm, fd
        self.virt = buffer.address
        self.dev = api.VfioDma(usdm)
        self.state = api.DmaIovaState()

    def page(self, number: int) -> int:
        return self.virt + number * PAGE

    def alloc(self, size: int = SIZE, pad: int = PAD) -> Case:
        assert api.dma_iova_try_alloc(self.dev, self.state, self.virt + pad, size)
        return self

    def linked(self) -> Case:
        """The range with links in its first three granules."""
        self.alloc()
        for virt, offset, size in (
            (self.virt + PAD, 0, FIRST),
            (self.page(7), FIRST, PAGE),
            (self.page(3), FIRST + PAGE, PAGE),
        ):
            assert api.dma_iova_link(self.dev, self.state, virt, offset, size, BOTH) == 0
        return self

    def held(self) -> tuple[object, ...]:
        stats = self.usdm.statistics()
        return (
            self.state.addr,
            self.state.size,
            self.state.info(),
            self.vfio.of(self.fd).entries.copy(),
            stats["iova_free"],
        )

    def refused(self, call: Callable[[], object], error: str) -> object:
        """Make a call that must be refused, and return what it returned."""
        before = self.held()
        value = call()
        assert type(api.last_error()).__name__ == error
        assert self.held() == before
        return value
