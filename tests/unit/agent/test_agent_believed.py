"""What the worker tells of mappings, and how it comes to know; on a simulated kernel."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.agent import believed, implementations, noted_container
from harness.agent.context import Context
from harness.agent.execute import execute
from harness.agent.ledger import NotedCalls
from harness.agent.noted_container import NotedContainer
from usdm import container as container_calls
from usdm import errors, qae_mem, vfio_uapi
from usdm.driver import Usdm
from usdm.qae_mem import Pointer

K = 1024
UNIT = 2 << 20
GROUP = 7


class Kernel:
    """VFIO's type 1 without memory: what is mapped, and which groups are in a container."""

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}
        self.in_container = True
        self.out: set[int] = set()  # descriptors of groups that have lost their devices

    def map_dma(self, fd: int, ioctl: Any, vaddr: int, iova: int, size: int, flags: int) -> None:
        if any(first < iova + size and iova < first + length for first, length in self.mapped.items()):
            raise errors.MapFailed("virt", vaddr, errno.EEXIST, "")
        self.mapped[iova] = size

    def unmap_dma(self, fd: int, ioctl: Any, iova: int, size: int) -> int:
        begun = [first for first in self.mapped if iova <= first < iova + size]
        return sum(self.mapped.pop(first) for first in begun)

    def status(self, fd: int, request: int, answer: bytearray) -> None:
        assert request == vfio_uapi.GROUP_GET_STATUS
        if not self.in_container or fd in self.out:
            raise OSError(errno.ENODEV, "")
        answer[4:8] = (vfio_uapi.GROUP_FLAGS_CONTAINER_SET).to_bytes(4, "little")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(container_calls, "map_dma", kernel.map_dma)
    monkeypatch.setattr(container_calls, "unmap_dma", kernel.unmap_dma)
    monkeypatch.setattr(noted_container, "kernel_ioctl", kernel.status)
    monkeypatch.setattr(believed, "iommu_group", lambda address: GROUP)
    monkeypatch.setattr(believed.pci, "driver_of", lambda address: "vfio-pci")
    monkeypatch.setattr(believed, "SYSFS_GROUPS", str(tmp_path))
    monkeypatch.setattr(believed, "SYSFS_IOMMUS", str(tmp_path / "iommu"))
    (tmp_path / "iommu" / "dmar0").mkdir(parents=True)
    (tmp_path / str(GROUP)).mkdir()
    (tmp_path / str(GROUP) / "type").write_text("DMA-FQ\n")
    return kernel


@pytest.fixture
def container(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> NotedContainer:
    monkeypatch.setattr(noted_container.Container, "__init__", lambda self, kind: None)
    container = NotedContainer()
    container.fd, container._ioctl = 90, lambda *_: 0
    container.groups = {GROUP: SimpleNamespace(number=GROUP, fd=50, no_iommu=False)}  # type: ignore[dict-item]
    return container


@pytest.fixture
def context(container: NotedContainer) -> Context:
    context = Context()
    context.addresses["qat0"] = "02:00.0"
    context._containers["default"] = container
    return context


def ask(context: Context) -> dict[str, Any]:
    answer = execute(context, "_believed", {"devices": ["qat0"]})
    assert answer["error"] is None
    found: dict[str, Any] = answer["values"]["devices"]["qat0"]
    return found


def runs(context: Context) -> list[tuple[int, int, str, int, int]]:
    return [tuple(run) for run in ask(context)["runs"]]


# ---- mappings beside USDM


def test_mappings_beside_usdm(context: Context, container: NotedContainer) -> None:
    assert runs(context) == []
    container.map_dma(0, 0x1000, 0x1000)
    container.map_dma(0, 0x2000, 0x1000, write=False)
    container.map_dma(0, 0x3000, 0x2000, read=False)
    assert runs(context) == [(0x1000, 0x1000, "rw", 1, 0), (0x2000, 0x1000, "r", 1, 0), (0x3000, 0x2000, "w", 1, 0)]
    with pytest.raises(errors.MapFailed):
        container.map_dma(0, 0x3000, 0x1000)
    # The kernel takes what begins in the range, and all of that.
    assert container.unmap_dma(0x3000, 0x1000) == 0x2000
    assert container.unmap_dma(0x8000, 0x1000) == 0
    assert runs(context) == [(0x1000, 0x1000, "rw", 1, 0), (0x2000, 0x1000, "r", 1, 0)]


def test_a_container_that_has_lost_its_last_group_has_nothing(
    context: Context, container: NotedContainer, kernel: Kernel
) -> None:
    container.map_dma(0, 0x1000, 0x1000)
    kernel.in_container = False
    assert runs(context) == []
    kernel.in_container = True
    assert runs(context) == []


def test_every_container_learns_that_it_has_lost_its_groups(
    context: Context, container: NotedContainer, kernel: Kernel
) -> None:
    other = NotedContainer()
    other.fd, other._ioctl = 91, lambda *_: 0
    other.groups = {9: SimpleNamespace(number=9, fd=51, no_iommu=False)}  # type: ignore[dict-item]
    context._containers["other"] = other
    other.map_dma(0, 0x9000, 0x1000)
    kernel.out.add(51)
    assert other.beside, "a question changes nothing"
    assert not other.holds(9)
    assert other.beside, "a question changes nothing"
    ask(context)  # of a device of the first one
    assert not other.beside


# ---- devices that the program does not have


@pytest.mark.parametrize(
    ("kind", "unknown", "translated"), [("DMA-FQ", "", True), ("blocked", "", True), ("identity", "identity", False)]
)
def test_a_device_in_no_container(
    context: Context, container: NotedContainer, tmp_path: Path, kind: str, unknown: str, translated: bool
) -> None:
    container.groups.clear()
    (tmp_path / str(GROUP) / "type").write_text(f"{kind}\n")
    found = ask(context)
    assert (found["runs"], found["exact"], found["translated"]) == ([], True, translated)
    assert unknown in found["unknown"]
    assert bool(found["unknown"]) is not translated


@pytest.mark.parametrize("file", [str(GROUP), "devices/vfio3"])
def test_a_device_that_another_program_has_open(
    file: str, context: Context, container: NotedContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its group, or by its own file."""
    monkeypatch.setattr(believed, "DEV_VFIO", str(tmp_path / "vfio"))
    (tmp_path / str(GROUP) / "devices" / "0000:02:00.0" / "vfio-dev" / "vfio3").mkdir(parents=True)
    (tmp_path / "vfio" / "devices").mkdir(parents=True)
    path = tmp_path / "vfio" / file
    path.touch()
    container.groups.clear()
    with path.open() as ours:
        assert (ask(context)["unknown"], ask(context)["exact"]) == ("", True), "this program is no other one"
        words = [sys.executable, "-c", "input()"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[ours.fileno()]) as other:
            # It has the descriptor from its fork on.
            assert (ask(context)["unknown"], ask(context)["exact"]) == ("another program has it open", False)
            other.communicate(b"\n")
        assert ask(context)["unknown"] == ""


def test_a_device_without_a_group(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(address: str) -> int:
        raise errors.NoIommuGroup("device", address)

    monkeypatch.setattr(believed, "iommu_group", none)
    assert ask(context)["unknown"] == ""  # other devices have an IOMMU
    (tmp_path / "iommu" / "dmar0").rename(tmp_path / "iommu" / "virtio0")
    assert "virtio0" in ask(context)["unknown"]
    (tmp_path / "iommu" / "virtio0").rmdir()
    assert ask(context)["unknown"] == "there is no IOMMU"
    (tmp_path / "iommu").rmdir()
    assert ask(context)["unknown"] == "there is no IOMMU"


def test_a_device_that_a_kernel_driver_has(
    context: Context, container: NotedContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.groups = {}
    assert ask(context)["unknown"] == ""
    monkeypatch.setattr(believed.pci, "driver_of", lambda address: "nvme")
    found = ask(context)
    assert (found["unknown"], found["exact"]) == ("the kernel's driver nvme has it", False)


def test_a_container_without_an_iommu(context: Context, container: NotedContainer) -> None:
    container.groups[GROUP].no_iommu = True
    assert "no IOMMU" in ask(context)["unknown"]
    assert not ask(context)["translated"]


# ---- usdm


class PretendedUsdm:
    """What `usdm` says of itself."""

    registered = True

    def __init__(self) -> None:
        self.regions = [(UNIT, UNIT, 1), (3 * UNIT, 4 * K, 0)]
        self.entries = [(8 * UNIT, 4 * K)]

    def maps(self) -> list[dict[str, int]]:
        return [{"iova": iova, "size": size, "mapped": mapped} for iova, size, mapped in self.regions]

    def remappings(self) -> list[dict[str, int]]:
        return [{"iova": iova, "size": size} for iova, size in self.entries]


@pytest.fixture
def usdm(monkeypatch: pytest.MonkeyPatch, context: Context) -> PretendedUsdm:
    usdm = PretendedUsdm()
    monkeypatch.setattr(qae_mem, "default_instance", lambda: usdm)
    monkeypatch.setattr(qae_mem, "qaeRegisterDevice", lambda fd: 0)
    monkeypatch.setattr(qae_mem, "last_error", lambda: None)
    return usdm


def test_what_usdm_believes_counts_for_the_container_that_is_registered(
    context: Context, usdm: PretendedUsdm, container: NotedContainer
) -> None:
    context.api.call("qaeRegisterDevice", 91)
    assert runs(context) == []
    context.api.call("qaeRegisterDevice", container.fd)
    assert runs(context) == [(UNIT, UNIT, "rw", 1, 0), (8 * UNIT, 4 * K, "rw", 1, 0)]
    assert ask(context)["exact"]
    usdm.registered = False
    assert runs(context) == []


def test_what_was_unmapped_beside_usdm_is_not_expected(
    context: Context, usdm: PretendedUsdm, container: NotedContainer, kernel: Kernel
) -> None:
    context.api.call("qaeRegisterDevice", container.fd)
    kernel.mapped[UNIT] = UNIT
    container.unmap_dma(UNIT, 4 * K)
    left = [(8 * UNIT, 4 * K, "rw", 1, 0)]
    assert runs(context) == left
    assert runs(context) == left  # as long as USDM has it
    usdm.regions = []
    assert runs(context) == left
    usdm.regions = [(UNIT, UNIT, 1)]
    assert runs(context) == [(UNIT, UNIT, "rw", 1, 0), *left]


def test_a_usdm_that_is_broken_is_the_worker_s_error(context: Context, usdm: PretendedUsdm) -> None:
    context.api.call("qaeRegisterDevice", 90)
    usdm.maps = lambda: [{}]  # type: ignore[method-assign]
    answer = execute(context, "_believed", {"devices": ["qat0"]})
    assert answer["error"]["type"] == "InternalError"
    assert "KeyError" in answer["error"]["message"]


def test_the_real_one_has_what_is_asked_for() -> None:
    one = Usdm()
    assert (one.registered, one.maps(), one.remappings()) == (False, [], [])


# ---- the C library


class PretendedLibrary:
    """A C library that gives what it is told to."""

    name = "libusdm"

    def __init__(self) -> None:
        self.gives: Any = 0
        self.error: Exception | None = None

    def call(self, function: str, *arguments: Any) -> tuple[Any, Exception | None]:
        for one in arguments:
            if isinstance(one, Pointer):
                one.value = None
        return self.gives, self.error

    def is_absent(self, error: Exception) -> bool:
        return error is self.error


class Library:
    """It with a container registered."""

    def __init__(self, context: Context) -> None:
        self.real = PretendedLibrary()
        self.api = context.api = NotedCalls(self.real)
        self.context = context
        self.call("qaeRegisterDevice", 90)

    def call(self, function: str, *arguments: Any, gives: Any = 0, error: Exception | None = None) -> None:
        self.real.gives, self.real.error = gives, error
        assert self.api.call(function, *arguments) == (gives, error)

    def alloc(self, virt: int, size: int, iova: int) -> None:
        self.call("qaeMemAllocNUMA", size, -1, 1, gives=virt)
        self.call("qaeVirtToPhysNUMA", virt, gives=iova)

    def said(self) -> tuple[list[int], list[int]]:
        """First IOVAs of what must be there, and of what must not."""
        found = ask(self.context)
        assert not found["exact"]
        return [run[0] for run in found["runs"]], [run[0] for run in found["gone"]]


@pytest.fixture
def library(context: Context) -> Library:
    return Library(context)


def test_mappings_of_the_c_library_are_promises(library: Library) -> None:
    library.call("qaeMemMapContiguousIova", 0x10000, 8 * K, gives=UNIT)
    library.call("qaeMemMapContiguousIova", 0x20000, 8 * K, gives=0, error=ValueError())
    assert library.said() == ([UNIT], [])
    library.call("qaeMemUnmapContiguousIova", 0x10000, 8 * K, gives=1, error=ValueError())
    assert library.said() == ([UNIT], [])
    library.call("qaeMemUnmapContiguousIova", 0x10000, 8 * K)
    assert library.said() == ([], [UNIT])
    library.call("qaeMemMapContiguousIova", 0x30000, 4 * K, gives=UNIT)
    assert library.said() == ([UNIT], [])


def test_a_part_that_it_unmaps_promises_nothing_any_more(library: Library) -> None:
    library.call("qaeMemMapContiguousIova", 0x10000, 8 * K, gives=UNIT)
    library.call("qaeMemUnmapContiguousIova", 0x11000, 4 * K)
    assert library.said() == ([], [])


def test_allocations_of_the_c_library(library: Library) -> None:
    library.alloc(0x10000, 4 * K, UNIT)
    library.alloc(0x20000, 4 * K, UNIT + 4 * K)
    assert library.said() == ([UNIT], [])
    library.call("qaeMemFreeNUMA", Pointer(0x10000))
    assert library.said() == ([UNIT + 4 * K], [])  # whether a freed one stays mapped is its own affair
    library.call("qaeUnregisterDevice", 90)
    assert library.said() == ([], [UNIT + 4 * K])
    library.call("qaeRegisterDevice", 90)
    assert library.said() == ([UNIT + 4 * K], [])


def test_registrations_are_counted(library: Library) -> None:
    library.call("qaeMemMapContiguousIova", 0x10000, 8 * K, gives=UNIT)
    library.call("qaeRegisterDevice", 90)
    library.call("qaeUnregisterDevice", 90)
    assert library.said() == ([UNIT], [])
    library.call("qaeUnregisterDevice", 90, gives=1, error=ValueError())
    assert library.said() == ([UNIT], [])
    library.call("qaeUnregisterDevice", 90)
    assert library.said() == ([], [UNIT])


def test_the_end_of_everything(library: Library) -> None:
    library.alloc(0x10000, 4 * K, UNIT)
    library.call("qaeMemDestroy", gives=None)
    assert library.said() == ([], [UNIT])
    library.call("qaeRegisterDevice", 90)
    assert library.said() == ([], [])


def test_the_end_of_everything_with_nothing_registered(library: Library) -> None:
    library.alloc(0x10000, 4 * K, UNIT)
    library.call("qaeUnregisterDevice", 90)
    library.call("qaeMemDestroy", gives=None)
    assert library.said() == ([], [UNIT])
    library.call("qaeRegisterDevice", 90)
    assert library.said() == ([], [])


def test_errors_are_still_the_library_s_own(library: Library) -> None:
    error = ValueError()
    library.call("qaeVirtToPhysNUMA", 5, error=error)
    assert library.api.is_absent(error)
    assert NotedCalls(implementations.find("usdm")).promises(90) == ([], [])
