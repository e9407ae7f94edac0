"""Devices that are opened through IOMMUFD: their IOVA space, and what the worker tells of it; on a simulated kernel."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from harness.agent import context as context_module
from harness.agent import dma_ranges, noted_ioas, pci
from harness.agent.context import Context
from harness.agent.dma_ranges import Link, Range, Stream
from harness.agent.execute import execute
from harness.agent.noted_ioas import NotedIoas
from usdm import errors

K = 1024
RANGES = ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1))


class FakeIoas:
    """Mappings by IOVA."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[int, int, bool, bool]] = {}

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        return RANGES

    def map(self, virt: int, iova: int, size: int, *, read: bool, write: bool) -> None:
        if iova in self.entries:
            raise errors.MapFailed("virt", virt, errno.EEXIST)
        self.entries[iova] = virt, size, read, write

    def unmap(self, iova: int, size: int) -> int:
        return sum(self.entries.pop(first)[1] for first in list(self.entries) if iova <= first < iova + size)


class FakeDevice:
    """A device that can refuse to be attached."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.attached: Any = None
        self.closed = False

    def attach(self, ioas: Any) -> None:
        if self.refuses:
            raise errors.DeviceError("device", "02:00.0", errno.EINVAL)
        self.attached = ioas

    def close(self) -> None:
        self.closed = True


class FakeIommufd:
    """What opens devices, and makes IOASes or does not."""

    refuses = False
    made: FakeIommufd

    def __init__(self) -> None:
        FakeIommufd.made = self
        self.devices: list[FakeDevice] = []
        self.closed = False

    def alloc_ioas(self) -> FakeIoas:
        if self.refuses:
            raise errors.DeviceError("iommufd", 3, errno.ENOMEM)
        return FakeIoas()

    def open_device(self, bdf: str) -> FakeDevice:
        self.devices.append(FakeDevice(self.refuses))
        return self.devices[-1]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(noted_ioas, "Iommufd", FakeIommufd)
    monkeypatch.setattr(FakeIommufd, "refuses", False)
    monkeypatch.setattr(pci, "bind", lambda address: None)
    monkeypatch.setattr(context_module, "_drive", lambda device, space: device)
    monkeypatch.setattr("harness.agent.believed.iommu_group", lambda address: 7)
    monkeypatch.setattr("usdm.vfio.iommu_group", lambda address: 7)
    monkeypatch.setattr("harness.agent.believed.SYSFS_IOMMUS", str(tmp_path))
    (tmp_path / "dmar0").mkdir()


@pytest.fixture
def context() -> Context:
    context = Context()
    context.addresses["edu0"] = "02:00.0"
    return context


def believed(context: Context) -> list[Any]:
    answer = execute(context, "_believed", {"devices": ["edu0"]})
    assert answer["error"] is None
    found = answer["values"]["devices"]["edu0"]
    assert (found["exact"], found["translated"], found["unknown"]) == (True, True, "")
    return [tuple(run[:3]) for run in found["runs"]]


def test_what_is_mapped_beside_ranges() -> None:
    space = NotedIoas()
    assert (space.no_iommu, space.info().iova_ranges, space.info().dma_avail) == (False, RANGES, None)
    space.map_dma(0x10000, 0x1000, 4 * K)
    space.map_dma(0x20000, 0x2000, 4 * K, write=False)
    space.map_dma(0x30000, 0x3000, 8 * K, read=False)
    assert space.mapped() == [(0x1000, 4 * K, "rw"), (0x2000, 4 * K, "r"), (0x3000, 8 * K, "w")]
    with pytest.raises(errors.MapFailed):
        space.map_dma(0x40000, 0x1000, 8 * K)
    assert space.unmap_dma(0x2000, 12 * K) == 12 * K
    assert space.mapped() == [(0x1000, 4 * K, "rw")]


def test_an_iommufd_without_an_ioas_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeIommufd, "refuses", True)
    with pytest.raises(errors.DeviceError):
        NotedIoas()
    assert FakeIommufd.made.closed


def test_a_device_that_cannot_be_attached_is_closed(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    space = NotedIoas()
    monkeypatch.setattr(FakeIommufd, "refuses", True)
    with pytest.raises(errors.DeviceError):
        space.open_device("02:00.0")
    (device,) = FakeIommufd.made.devices
    assert device.closed


def test_opened_closed_and_opened_again(context: Context) -> None:
    assert context.ioas_of("edu0") is None
    answer = execute(context, "open", {"device": "edu0", "through": "iommufd"})
    assert (answer["error"], answer["values"]["iova_ranges"]) == (None, [list(span) for span in RANGES])
    space = context.ioas_of("edu0")
    assert space is not None
    execute(context, "open", {"device": "edu0", "through": "iommufd"})
    assert len(FakeIommufd.made.devices) == 1
    assert FakeIommufd.made.devices[0].attached is space.ioas
    assert execute(context, "close", {"device": "edu0"})["error"] is None
    assert context.ioas_of("edu0") is None
    execute(context, "open", {"device": "edu0", "through": "iommufd"})
    assert context.ioas_of("edu0") is space, "one for the program"


def test_what_a_device_in_an_ioas_can_reach(context: Context) -> None:
    execute(context, "open", {"device": "edu0", "through": "iommufd"})
    space = context.ioas_of("edu0")
    assert space is not None
    assert believed(context) == []
    space.map_dma(0, 0x700000, 4 * K)
    assert context.dma.space(context, "edu0") == dma_ranges.IOAS
    held = context.dma.ranges["r"] = Range("r", None, None)
    held.iova, held.space = 0x200100, dma_ranges.IOAS
    held.links = {0: Link(0x100, 3840, "r"), 3840: Link(0x1000, 4 * K, "r"), 7936: Link(0x2000, 4 * K, "w")}
    held.links[0].synced = held.links[7936].synced = True
    context.dma.streams["a", 0] = [Stream(0x300F00, 1000, "w", dma_ranges.IOAS), Stream(0, 4 * K, "w", ("container",))]
    wanted = [(0x200000, 4 * K, "r"), (0x202000, 4 * K, "w"), (0x300000, 8 * K, "w"), (0x700000, 4 * K, "rw")]
    assert believed(context) == wanted
    # A closed one is the kernel's, which maps nothing for it.
    execute(context, "close", {"device": "edu0"})
    assert believed(context) == []
