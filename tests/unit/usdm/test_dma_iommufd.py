"""IOMMUFD by a simulated kernel: structures, refusals, and how an IOAS ends. The real one is in tests/guest."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from usdm_fake_vfio import Buffer, FakeContainer

from usdm import dma_iova as api
from usdm import errors, iommufd_uapi
from usdm.dma_errors import DomainEnded, IoasMapFailed, IoasUnmapFailed
from usdm.dma_iommufd import IommufdDma
from usdm.iommufd import Iommufd, device_file
from usdm.kernel import Kernel

PAGE, UNIT = 4096, 2 << 20
BOTH = api.DMA_BIDIRECTIONAL
# Numbers of linux/iommufd.h and linux/vfio.h
DESTROY, ALLOC, RANGES, MAP, UNMAP = 0x3B80, 0x3B81, 0x3B84, 0x3B85, 0x3B86
BIND, ATTACH, DETACH = 0x3B76, 0x3B77, 0x3B78
NARROW = ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1))


class FakeIommufd(Kernel):
    """What the kernel does with the calls, written from its rules; it packs its structures by itself."""

    def __init__(self) -> None:
        super().__init__(self._call)
        self.ioases: dict[int, FakeContainer] = {}
        self.attached: dict[int, int] = {}  # device -> IOAS
        self.ranges: tuple[tuple[int, int], ...] = ((0, (1 << 64) - 1),)
        self.alignment = 1
        self.failures: list[tuple[int, int]] = []
        self.calls: list[int] = []

    def _call(self, fd: int, request: int, argument: bytearray | int) -> int:
        assert isinstance(argument, bytearray)
        assert struct.unpack_from("=I", argument)[0] == len(argument)
        self.calls.append(request)
        for index, (wanted, number) in enumerate(self.failures):
            if wanted == request:
                del self.failures[index]
                raise OSError(number, "injected")
        {
            DESTROY: self._destroy,
            ALLOC: self._alloc,
            RANGES: self._ranges,
            MAP: self._map,
            UNMAP: self._unmap,
            BIND: self._bind,
            ATTACH: lambda data: self._attach(fd, data),
            DETACH: lambda data: self._detach(fd, data),
        }[request](argument)
        return 0

    def _alloc(self, data: bytearray) -> None:
        number = len(self.ioases) + 1
        self.ioases[number] = FakeContainer(ranges=None, v2=True)
        data[8:12] = struct.pack("=I", number)

    def _destroy(self, data: bytearray) -> None:
        number = struct.unpack("=II", data)[1]
        if number in self.attached.values():
            raise OSError(errno.EBUSY, "destroy")
        del self.ioases[number]

    def _ranges(self, data: bytearray) -> None:
        _, number, count, reserved, array, _ = struct.unpack("=IIIIQQ", data)
        assert number in self.ioases
        assert reserved == 0
        struct.pack_into("=I", data, 8, len(self.ranges))
        struct.pack_into("=Q", data, 24, self.alignment)
        if count < len(self.ranges):
            raise OSError(errno.EMSGSIZE, "ranges")
        packed = b"".join(struct.pack("=QQ", *one) for one in self.ranges)
        ctypes.memmove(array, packed, len(packed))

    def _map(self, data: bytearray) -> None:
        _, flags, number, reserved, virt, size, iova = struct.unpack("=IIIIQQQ", data)
        assert reserved == 0
        assert flags & 1, "at a fixed IOVA"
        access = (1 if flags & 4 else 0) | (2 if flags & 2 else 0)
        self.ioases[number].ranges = self.ranges
        self.ioases[number].map(virt, iova, size, access, False)

    def _unmap(self, data: bytearray) -> None:
        _, number, iova, size = struct.unpack("=IIQQ", data)
        removed = self.ioases[number].unmap(iova, size)
        if not removed:
            raise OSError(errno.ENOENT, "unmap")
        struct.pack_into("=Q", data, 16, removed)

    def _bind(self, data: bytearray) -> None:
        assert len(data) in (16, 24)

    def _attach(self, fd: int, data: bytearray) -> None:
        self.attached[fd] = struct.unpack("=III", data)[2]
        self.ranges = NARROW

    def _detach(self, fd: int, data: bytearray) -> None:
        assert len(data) == 8
        del self.attached[fd]


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """A /dev and a /sys with one device that is bound, and one that is not."""
    for name in (
        "dev/devices",
        "sys/0000:02:00.0/vfio-dev/vfio3",
        "sys/0000:03:00.0",
        "sys/0000:04:00.0/vfio-dev/vfio4",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "iommu").touch()
    (tmp_path / "dev/devices/vfio3").touch()
    return tmp_path


@pytest.fixture
def kernel() -> FakeIommufd:
    return FakeIommufd()


@pytest.fixture
def iommufd(kernel: FakeIommufd, nodes: Path) -> Iterator[Iommufd]:
    made = Iommufd(kernel, path=str(nodes / "iommu"), dev=str(nodes / "dev"), sysfs=str(nodes / "sys"))
    yield made
    made.close()


def test_sizes_and_numbers():
    assert [len(data) for data in (iommufd_uapi.destroy(1), iommufd_uapi.ioas_alloc(), iommufd_uapi.detach())] == [
        8,
        12,
        8,
    ]
    assert [len(data) for data in (iommufd_uapi.iova_ranges(1, 2, 3), iommufd_uapi.ioas_map(1, 2, 3, 4, 5))] == [32, 40]
    assert [len(iommufd_uapi.ioas_unmap(1, 2, 3)), len(iommufd_uapi.attach(1))] == [24, 12]
    assert [len(iommufd_uapi.bind(3)), len(iommufd_uapi.bind(3, 4))] == [16, 24]
    for name, number in (("DESTROY", DESTROY), ("IOAS_ALLOC", ALLOC), ("IOAS_IOVA_RANGES", RANGES), ("IOAS_MAP", MAP)):
        assert getattr(iommufd_uapi, name) == number
    assert iommufd_uapi.IOAS_UNMAP == UNMAP
    assert (iommufd_uapi.DEVICE_BIND_IOMMUFD, iommufd_uapi.DEVICE_ATTACH_IOMMUFD_PT) == (BIND, ATTACH)
    assert iommufd_uapi.DEVICE_DETACH_IOMMUFD_PT == DETACH
    # flags, IOAS, 0, memory, bytes, IOVA
    assert struct.unpack("=IIIIQQQ", iommufd_uapi.ioas_map(7, 5, 0x1000, 0x2000, 0x3000)) == (
        40, 5, 7, 0, 0x1000, 0x2000, 0x3000,
    )  # fmt: skip
    assert struct.unpack("=IIiIQ", iommufd_uapi.bind(-1, 9)) == (24, 1, -1, 0, 9)


def test_a_range(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    device = iommufd.open_device("02:00.0")
    device.attach(ioas)
    buffer, state, dev = Buffer(3 * PAGE), api.DmaIovaState(), IommufdDma(ioas)
    assert api.dma_iova_try_alloc(dev, state, buffer.address, 3 * PAGE)
    for page, direction in enumerate((0, 0, 1)):
        at = page * PAGE
        assert api.dma_iova_link(dev, state, buffer.address + at, at, PAGE, direction) == 0
    assert api.dma_iova_sync(dev, state, 0, 3 * PAGE) == 0
    base = state.addr
    kernel.calls.clear()
    api.dma_iova_unlink(dev, state, 0, 2 * PAGE, 0)
    assert kernel.calls == [UNMAP]
    assert list(kernel.ioases[1].entries) == [base + 2 * PAGE]
    # somebody unmapped it beside us: ENOENT is told, and the range ends
    kernel.ioases[1].entries.clear()
    api.dma_iova_unlink(dev, state, 2 * PAGE, PAGE, 1)
    assert "ENOENT" in str(api.last_error())
    api.dma_iova_free(dev, state)
    assert api.last_error() is None
    assert ioas.dma_domain().granules.held == 0
    buffer.close()


def test_a_mapping_that_fails(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    buffer = Buffer(PAGE)
    kernel.failures.append((MAP, errno.ENOMEM))
    with pytest.raises(IoasMapFailed, match="ENOMEM"):
        ioas.map(buffer.address, UNIT, PAGE)
    with pytest.raises(errors.AddressNotAccessible):
        ioas.map(PAGE, UNIT, PAGE)
    with pytest.raises(IoasMapFailed, match="EINVAL"):
        ioas.map(buffer.address, UNIT, PAGE, read=False, write=False)
    with pytest.raises(errors.BadArgument):
        ioas.map(buffer.address, -1, PAGE)
    for arguments in (("x", 1), (UNIT, 1 << 64), (True, PAGE)):
        with pytest.raises(errors.BadArgument):
            ioas.unmap(*arguments)  # type: ignore[arg-type]
    ioas.map(buffer.address, UNIT, PAGE)
    with pytest.raises(IoasUnmapFailed, match="ENOENT"):
        ioas.unmap(2 * UNIT, PAGE)
    assert ioas.unmap(UNIT, PAGE) == PAGE
    buffer.close()


def test_ranges_of_an_ioas(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    assert ioas.iova_ranges() == ((0, (1 << 64) - 1),)
    kernel.ranges = tuple((number * UNIT, number * UNIT + PAGE - 1) for number in range(200))
    kernel.calls.clear()
    assert ioas.iova_ranges() == kernel.ranges
    assert kernel.calls == [RANGES, RANGES]
    kernel.alignment = 65536
    with pytest.raises(errors.Unsupported, match="0x10000"):
        ioas.iova_ranges()
    kernel.failures.append((RANGES, errno.ENOENT))
    with pytest.raises(errors.DeviceError, match="IOAS_IOVA_RANGES"):
        ioas.iova_ranges()


def test_a_device_that_comes_later_narrows_the_space(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    dev, states = IommufdDma(ioas), [api.DmaIovaState() for _ in range(2)]
    # nothing is attached: every IOVA counts
    assert api.dma_iova_try_alloc(dev, states[0], 0, 1 << 40)
    api.dma_iova_free(dev, states[0])
    iommufd.open_device("02:00.0").attach(ioas)
    assert not api.dma_iova_try_alloc(dev, states[0], 0, 1 << 40)
    assert api.dma_iova_try_alloc(dev, states[1], 0, 1 << 30)
    assert states[1].addr + (1 << 30) <= 1 << 39


def test_how_an_ioas_ends(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    device = iommufd.open_device("02:00.0")
    device.attach(ioas)
    dev, state = IommufdDma(ioas), api.DmaIovaState()
    assert api.dma_iova_try_alloc(dev, state, 0, PAGE)
    with pytest.raises(errors.DeviceError, match="EBUSY"):
        ioas.destroy()
    assert api.dma_use_iova(state)
    device.detach()
    ioas.destroy()
    assert not api.dma_use_iova(state)
    assert api.dma_iova_sync(dev, state, 0, PAGE) == -errno.EINVAL
    assert "must not have ended" in str(api.last_error())
    assert not api.dma_iova_try_alloc(dev, state, 0, PAGE)
    assert isinstance(api.last_error(), DomainEnded)
    ioas.destroy()  # once more does nothing
    assert kernel.ioases == {}
    kernel.calls.clear()
    for call in (lambda: ioas.map(PAGE, PAGE, PAGE), lambda: ioas.unmap(PAGE, PAGE), ioas.iova_ranges):
        with pytest.raises(DomainEnded):
            call()
    assert kernel.calls == []


def test_every_call_has_the_lock(iommufd: Iommufd, kernel: FakeIommufd, monkeypatch: pytest.MonkeyPatch):
    """There is one request for all maps, and one for all unmaps: nobody else may write to it meanwhile."""
    locked: list[bool] = []

    def ioctl(fd: int, request: int, argument: bytearray) -> int:
        if request != ALLOC:
            locked.append(ioas._lock.locked())
        return kernel._call(fd, request, argument)

    monkeypatch.setattr(kernel, "ioctl", ioctl)
    ioas, buffer = iommufd.alloc_ioas(), Buffer(PAGE)
    ioas.map(buffer.address, UNIT, PAGE)
    ioas.unmap(UNIT, PAGE)
    ioas.iova_ranges()
    ioas.destroy()
    assert locked == [True] * 4
    buffer.close()


def test_a_destroyed_ioas_has_ended_before_anybody_else_has_the_lock(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    dev, state = IommufdDma(ioas), api.DmaIovaState()
    assert api.dma_iova_try_alloc(dev, state, 0, PAGE)
    domain = ioas.dma_domain()
    seen: list[bool] = []

    class Lock:
        """Tells at each release whether the kernel's IOAS and ours differ."""

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __enter__(self) -> None:
            self.inner.__enter__()  # type: ignore[attr-defined]

        def __exit__(self, *_: object) -> None:
            seen.append(bool(kernel.ioases) == (domain.ended is None))
            self.inner.__exit__(None, None, None)  # type: ignore[attr-defined]

    ioas._lock = Lock(ioas._lock)  # type: ignore[assignment]
    ioas.destroy()
    assert seen
    assert all(seen)


def test_what_is_no_ioas():
    with pytest.raises(errors.BadArgument, match="no Ioas"):
        IommufdDma(5)  # type: ignore[arg-type]


def test_closing_closes_all(iommufd: Iommufd, kernel: FakeIommufd):
    ioas = iommufd.alloc_ioas()
    device = iommufd.open_device("02:00.0")
    device.attach(ioas)
    dev, state = IommufdDma(ioas), api.DmaIovaState()
    assert api.dma_iova_try_alloc(dev, state, 0, PAGE)
    with iommufd:
        pass
    assert (iommufd.fd, device.fd, device.ioas, iommufd.devices) == (-1, -1, None, [])
    assert not api.dma_use_iova(state)
    assert not api.dma_iova_try_alloc(dev, state, 0, PAGE)
    iommufd.close()


def test_two_iommufds_share_nothing_and_devices_can_move(iommufd: Iommufd, kernel: FakeIommufd):
    first, second = iommufd.alloc_ioas(), iommufd.alloc_ioas()
    device = iommufd.open_device("02:00.0")
    device.attach(first)
    device.attach(second)
    assert device.ioas is second
    first.destroy()
    assert kernel.attached == {device.fd: second.id}
    device.close()
    assert iommufd.devices == []


@pytest.mark.parametrize(
    ("bdf", "error", "says"),
    [
        ("05:00.0", errors.DeviceNotFound, "05:00.0"),
        ("03:00.0", errors.DeviceNotBound, "vfio-dev"),
        ("04:00.0", errors.Unsupported, "CONFIG_VFIO_DEVICE_CDEV"),
    ],
)
def test_a_device_without_a_file(nodes: Path, iommufd: Iommufd, bdf: str, error: type[errors.UsdmError], says: str):
    with pytest.raises(error, match=says):
        iommufd.open_device(bdf)


def test_the_path_of_a_device(nodes: Path):
    assert device_file("02:00.0", str(nodes / "sys"), str(nodes / "dev")) == f"{nodes}/dev/devices/vfio3"


@pytest.mark.parametrize(("request_", "name"), [(BIND, "DEVICE_BIND_IOMMUFD"), (ALLOC, "IOAS_ALLOC")])
def test_the_kernel_refuses(iommufd: Iommufd, kernel: FakeIommufd, request_: int, name: str):
    files = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    kernel.failures.append((request_, errno.EBUSY))
    call = (lambda: iommufd.open_device("02:00.0")) if request_ == BIND else iommufd.alloc_ioas
    with pytest.raises(errors.DeviceError, match=name):
        call()
    assert set(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    assert iommufd.devices == []
    assert iommufd.ioases == []


def test_an_attach_that_is_refused(iommufd: Iommufd, kernel: FakeIommufd):
    ioas, device = iommufd.alloc_ioas(), iommufd.open_device("02:00.0", b"0123456789abcdef")
    kernel.failures.append((ATTACH, errno.EINVAL))
    with pytest.raises(errors.DeviceError, match="ATTACH"):
        device.attach(ioas)
    assert device.ioas is None


def test_a_kernel_without_iommufd(tmp_path: Path):
    with pytest.raises(errors.Unsupported, match="CONFIG_IOMMUFD"):
        Iommufd(path=str(tmp_path / "iommu"))
    with pytest.raises(errors.DeviceError):
        Iommufd(path=str(tmp_path))  # a folder


def test_a_forked_child(iommufd: Iommufd, kernel: FakeIommufd):
    ioas, device, buffer = iommufd.alloc_ioas(), iommufd.open_device("02:00.0"), Buffer(PAGE)
    device.attach(ioas)
    ioas.map(buffer.address, UNIT, PAGE)
    dev, state = IommufdDma(ioas), api.DmaIovaState()
    assert api.dma_iova_try_alloc(dev, state, 0, PAGE)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - in the child
        refused = 0
        kernel.calls.clear()
        for call in (
            iommufd.alloc_ioas,
            ioas.destroy,
            lambda: iommufd.open_device("02:00.0"),
            lambda: ioas.map(PAGE, PAGE, PAGE),
            lambda: ioas.unmap(UNIT, PAGE),
            ioas.iova_ranges,
            lambda: device.attach(ioas),
            device.detach,
            lambda: dev.sync(state, 0, PAGE),
            lambda: dev.try_alloc(api.DmaIovaState(), 0, PAGE),
            lambda: dev.map_single(PAGE, PAGE, BOTH),
        ):
            with contextlib.suppress(errors.ForkedChild):
                call()
                break
            refused += 1
        os._exit(refused + 100 * len(kernel.calls))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
    assert api.dma_use_iova(state)
