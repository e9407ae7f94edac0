"""The kernel refuses calls of the two-step DMA mapping API: nothing is half mapped, and what is kept is told."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from usdm_fake_vfio import MAP, UNMAP, Buffer, FakeContainer, FakeVfio

from usdm import dma_iova as api
from usdm.driver import Usdm

PAGE, UNIT = 4096, 2 << 20
BOTH = api.DMA_BIDIRECTIONAL
COUNT = 5


class Rig:
    """A range with five links of a page, of which the device sees the second one."""

    def __init__(self, v2: bool) -> None:
        self.vfio = FakeVfio()
        self.usdm = Usdm(self.vfio.ioctl)
        self.container = FakeContainer(v2=v2)
        self.fd = self.vfio.open(self.container)
        self.usdm.register_device(self.fd)
        self.buffer = Buffer(COUNT * PAGE)
        self.free = self.usdm.statistics()["iova_free"]
        self.dev, self.state = api.VfioDma(self.usdm), api.DmaIovaState()
        assert api.dma_iova_try_alloc(self.dev, self.state, self.buffer.address, COUNT * PAGE)
        for page in range(COUNT):
            at = page * PAGE
            assert api.dma_iova_link(self.dev, self.state, self.buffer.address + at, at, PAGE, BOTH) == 0
        assert api.dma_iova_sync(self.dev, self.state, PAGE, PAGE) == 0
        self.vfio.calls.clear()

    def sync(self) -> int:
        return api.dma_iova_sync(self.dev, self.state, 0, COUNT * PAGE)

    def mapped(self) -> list[int]:
        return sorted((iova - self.state.addr) // PAGE for iova in self.container.entries)

    def close(self) -> None:
        self.vfio.failures.clear()
        if api.dma_use_iova(self.state):
            api.dma_iova_destroy(self.dev, self.state, self.linked() * PAGE, BOTH)
            assert api.last_error() is None
        assert self.container.entries == {}
        assert self.usdm.statistics()["iova_free"] == self.free
        self.usdm.close()
        self.vfio.close()
        self.buffer.close()

    def linked(self) -> int:
        return self.state.info()["links"]


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("at", range(COUNT - 1))
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EFAULT, errno.EEXIST, errno.EBADF])
def test_a_sync_of_which_one_mapping_fails(rig: Rig, at: int, number: int):
    rig.vfio.fail(MAP, number, at)
    assert rig.sync() == -number
    assert rig.mapped() == [1]
    assert rig.state.info()["synced"] == 1
    assert rig.usdm.statistics()["container_mappings"] == 1
    assert rig.sync() == 0
    assert rig.mapped() == [0, 1, 2, 3, 4]


def test_what_cannot_be_taken_back_counts_as_synced(rig: Rig, capsys: pytest.CaptureFixture[str]):
    rig.vfio.fail(MAP, errno.ENOMEM, 3)  # links 0, 2 and 3 are mapped, 4 is not
    rig.vfio.fail(UNMAP, errno.EINVAL, 1)  # 3 is taken back, 2 is not
    assert rig.sync() == -errno.ENOMEM
    assert "dma_iova_sync: left mapped: 2 of the pieces" in capsys.readouterr().err
    assert rig.mapped() == [0, 1, 2]
    assert rig.state.info()["synced"] == 3
    assert rig.usdm.statistics()["container_mappings"] == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_an_unmap_that_is_refused(rig: Rig, number: int):
    assert rig.sync() == 0
    for call in (
        lambda: api.dma_iova_unlink(rig.dev, rig.state, PAGE, 2 * PAGE, BOTH),
        lambda: api.dma_iova_destroy(rig.dev, rig.state, COUNT * PAGE, BOTH),
    ):
        rig.vfio.fail(UNMAP, number)
        call()
        assert type(api.last_error()).__name__ == "UnmapFailed"
        assert rig.mapped() == [0, 1, 2, 3, 4]
        assert rig.state.info()["synced"] == COUNT


def test_somebody_unmapped_beside_us(rig: Rig):
    assert rig.sync() == 0
    del rig.container.entries[rig.state.addr + 2 * PAGE]
    api.dma_iova_unlink(rig.dev, rig.state, 2 * PAGE, 3 * PAGE, BOTH)
    assert "ENOENT" in str(api.last_error())
    assert (rig.mapped(), rig.linked()) == ([0, 1], 2)
    rig.container.entries.clear()
    api.dma_iova_destroy(rig.dev, rig.state, 2 * PAGE, BOTH)
    assert "ENOENT" in str(api.last_error())
    assert not api.dma_use_iova(rig.state)


def test_an_interrupt_in_a_sync(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C after a mapping was made, and before anybody knows."""
    real, made = FakeContainer.map, []

    def interrupted(self: FakeContainer, *arguments: object) -> None:
        real(self, *arguments)  # type: ignore[arg-type]
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(FakeContainer, "map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rig.sync()
    assert rig.mapped() == [1]
    assert rig.state.info()["synced"] == 1
    assert rig.sync() == 0


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EBADF])
def test_streaming(rig: Rig, number: int):
    free = rig.usdm.statistics()["iova_free"]
    rig.vfio.fail(MAP, number)
    assert api.dma_map_single(rig.dev, rig.buffer.address + 1, 8, BOTH) == api.DMA_MAPPING_ERROR
    assert rig.mapped() == [1]
    addr = api.dma_map_single(rig.dev, rig.buffer.address + 1, 8, BOTH)
    rig.vfio.fail(UNMAP, number)
    api.dma_unmap_single(rig.dev, addr, 8, BOTH)
    assert type(api.last_error()).__name__ == "UnmapFailed"
    assert len(rig.mapped()) == 2
    rig.container.entries.pop(addr - 1)
    api.dma_unmap_single(rig.dev, addr, 8, BOTH)
    assert "ENOENT" in str(api.last_error())
    assert rig.usdm.statistics()["iova_free"] == free


def test_unregister_while_the_kernel_refuses(rig: Rig):
    assert rig.sync() == 0
    api.dma_map_single(rig.dev, rig.buffer.address, 8, BOTH)
    rig.vfio.fail(UNMAP, errno.EINVAL)
    with pytest.raises(Exception, match="EINVAL"):
        rig.usdm.unregister_device(rig.fd)
    assert len(rig.container.entries) == 1  # it ends with the container; all the others are gone
    rig.container.entries.clear()
    assert not api.dma_use_iova(rig.state)
