"""The kernel's own DMA mapping through the test module: what is sent to it, and what its answers become.

tests/guest/test_kernel_module.py has the module itself.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.agent import kernel_abi as abi
from harness.agent import kernel_device
from harness.agent.kernel_device import (
    KernelDevice,
    MemoryScattered,
    NoTestModule,
    NothingMapped,
    NotPinned,
    NotTakenOver,
    StateWithoutRange,
    WouldStop,
    bind,
)
from harness.agent.kernel_dma import (
    DMA_MAPPING_ERROR,
    USE_SWIOTLB,
    KernelDma,
    KernelRefused,
    KernelWarned,
    LogOverrun,
    NotOfTheKernel,
)
from harness.agent.outcome import StepError
from harness.paths import images_dir
from usdm import vfio_uapi as uapi
from usdm.errors import DeviceError

HEADER = images_dir() / "module/dma_iova_test/dma_iova_test.h"
CALL = struct.Struct("=IIQQQQqQQ")
WARNING = "WARNING: drivers/iommu/dma-iommu.c:2098 at __iommu_dma_iova_unlink+0x269/0x290, CPU#0: python3/127"


class State:
    addr = 0
    size = 0


class FakeModule:
    """Answers ioctls as it is told to, and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[Any, ...]]] = []
        self.answers: list[tuple[int, int, int] | int] = []
        self.during: Callable[[], None] = lambda: None

    def __call__(self, _fd: int, request: int, argument: bytearray) -> int:
        if len(argument) != CALL.size:
            self.asked.append((request, (bytes(argument),)))
            return 0
        fields = CALL.unpack(argument)
        self.asked.append((request, fields[:6]))
        self.during()
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        argument[:] = CALL.pack(*fields[:6], *answer)
        return 0


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_bytes(b"")
    return path


@pytest.fixture
def api(log: Path) -> Iterator[KernelDma]:
    api = KernelDma(str(log))
    yield api
    api.close()


@pytest.fixture
def module() -> FakeModule:
    return FakeModule()


@pytest.fixture
def dev(tmp_path: Path, module: FakeModule) -> Iterator[KernelDevice]:
    folder = tmp_path / "sys/devices/0000:02:00.0"
    folder.mkdir(parents=True)
    (folder / "config").write_bytes(bytes(256))
    (folder / "resource0").write_bytes(bytes(4096))
    (tmp_path / "dma_iova_test-0000:02:00.0").write_bytes(b"")
    device = KernelDevice("02:00.0", str(tmp_path / "sys"), str(tmp_path))
    device.ioctl = module
    yield device
    device.close()


# ---- the ABI


def test_the_numbers_are_the_headers():
    text = HEADER.read_text()
    calls = dict(re.findall(r"#define DMA_IOVA_TEST_(\w+) DMA_IOVA_TEST_CALL\((\d+)\)", text))
    assert calls.pop("STATES", None) is None
    # _IOWR('u', number, 64 bytes)
    assert {name: getattr(abi, name) for name in calls} == {
        name: 3 << 30 | 64 << 16 | 0x75 << 8 | int(number) for name, number in calls.items()
    }
    assert len(calls) == 9
    others = dict(re.findall(r"#define DMA_IOVA_TEST_(\w+) _IOW?R?\('u', (\d+), \w+", text))
    assert {name: getattr(abi, name) >> 8 & 0xFF for name in others} == dict.fromkeys(others, 0x75)
    assert {name: getattr(abi, name) & 0xFF for name in others} == {name: int(n) for name, n in others.items()}
    assert f"#define DMA_IOVA_TEST_STATES {abi.STATES}" in text


def test_the_layout_is_the_headers():
    text = HEADER.read_text()
    sizes = {"__u32": "I", "__u64": "Q", "__s64": "q"}
    for name, request in (("call", abi.call_request()), ("info", abi.info_request())):
        body = re.search(rf"struct dma_iova_test_{name} {{(.*?)}}", text, re.DOTALL)
        assert body
        layout = "".join(sizes[kind] for kind in re.findall(r"(__\w+) \w+;", body[1]))
        # Natural alignment, as the compiler has it, is the packed one.
        assert struct.calcsize(f"@{layout}") == struct.calcsize(f"={layout}") == len(request)
        assert layout == {"call": "IIQQQQqQQ", "info": "QQIIIIII"}[name]


def test_the_answer_about_the_device():
    info = abi.Info(struct.pack("=QQIIIIII", 4095, (1 << 64) - 1, 3, 1, 4095, 1, 7, 0))
    assert {name: getattr(info, name) for name in info.__slots__} == {
        "merge_boundary": 4095,
        "dma_mask": (1 << 64) - 1,
        "domain_type": 3,
        "use_iommu": True,
        "min_align_mask": 4095,
        "untrusted": True,
        "pinned": 7,
    }


# ---- calls


def test_a_range_from_start_to_end(api: KernelDma, dev: KernelDevice, module: FakeModule):
    state = State()
    module.answers = [(1, 0xFFFC200, 8192), (0, 0xFFFC200, 8192), (0, 0xFFFC200, 8192), (0, 0xFFFC200, 8192)]
    module.answers.append((1, 0xFFFC200, 8192))
    assert api.call("dma_iova_try_alloc", dev, state, 0x7F200, 8192) == (1, None)
    assert (state.addr, state.size) == (0xFFFC200, 8192)
    assert api.call("dma_use_iova", state) == (1, None)
    assert api.call("dma_iova_link", dev, state, 0x7F200, 0, 3584, 1, 1 << 10) == (0, None)
    assert api.call("dma_iova_sync", dev, state, 0, 3584) == (0, None)
    assert api.call("dma_iova_unlink", dev, state, 0, 3584, 1) == (None, None)
    assert api.call("dma_iova_destroy", dev, state, 512, 2, 1 << 5) == (None, None)
    assert (state.addr, state.size) == (0xFFFC200, 8192), "the kernel leaves it as it was"
    assert api.call("dma_use_iova", state) == (1, None)
    # state, direction, address, offset, size, attributes
    assert module.asked == [
        (abi.TRY_ALLOC, (0, 0, 0x7F200, 0, 8192, 0)),
        (abi.LINK, (0, 1, 0x7F200, 0, 3584, 1 << 10)),
        (abi.SYNC, (0, 0, 0, 0, 3584, 0)),
        (abi.UNLINK, (0, 1, 0, 0, 3584, 0)),
        (abi.DESTROY, (0, 2, 0, 0, 512, 1 << 5)),
    ]


def test_states_have_numbers_of_their_own_which_are_used_again(api: KernelDma, dev: KernelDevice, module: FakeModule):
    states = [State() for _ in range(3)]
    module.answers = [(1, 4096, 4096)] * 2 + [(1, 4096, 4096)] + [(1, 4096, 4096)] * 2
    api.call("dma_iova_try_alloc", dev, states[0], 0, 4096)
    api.call("dma_iova_try_alloc", dev, states[1], 0, 4096)
    api.call("dma_iova_free", dev, states[0])
    api.call("dma_iova_try_alloc", dev, states[2], 0, 4096)
    api.call("dma_iova_try_alloc", dev, states[1], 0, 4096)
    assert [fields[0] for _, fields in module.asked] == [0, 1, 0, 0, 1]


def test_more_states_than_the_module_has(api: KernelDma, dev: KernelDevice, module: FakeModule):
    states = [State() for _ in range(abi.STATES + 1)]
    module.answers = [(1, 4096, 4096)] * abi.STATES
    for state in states[:-1]:
        api.call("dma_iova_try_alloc", dev, state, 0, 4096)
    with pytest.raises(StepError, match="all are in use"):
        api.call("dma_iova_try_alloc", dev, states[-1], 0, 4096)


def test_the_kernels_own_flag_is_not_part_of_the_size(api: KernelDma, dev: KernelDevice, module: FakeModule):
    state = State()
    module.answers = [(0, 4096, 100 | USE_SWIOTLB)]
    api.call("dma_iova_link", dev, state, 0, 0, 100, 0)
    assert state.size == 100


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.EIO, "-EIO"), (errno.EOPNOTSUPP, "-EOPNOTSUPP"), (errno.ENXIO, "-ENXIO"), (9999, "-9999")],
)
def test_a_refusal_has_the_kernels_number(
    api: KernelDma, dev: KernelDevice, module: FakeModule, number: int, name: str
):
    module.answers = [(-number, 4096, 4096)] * 2
    for function, arguments in (("dma_iova_link", (0, 0, 4096, 0)), ("dma_iova_sync", (0, 4096))):
        value, error = api.call(function, dev, State(), *arguments)
        assert value == -number
        assert isinstance(error, KernelRefused)
        assert str(error) == f"{function}: {name}"


def test_try_alloc_that_says_false(api: KernelDma, dev: KernelDevice, module: FakeModule):
    module.answers = [(0, 0, 0)]
    value, error = api.call("dma_iova_try_alloc", dev, State(), 0, 0)
    assert value == 0
    assert isinstance(error, KernelRefused)


def test_the_streaming_api(api: KernelDma, dev: KernelDevice, module: FakeModule):
    module.answers = [(0xFFFF_F200, 0, 0), (0, 0, 0), (-1, 0, 0)]
    assert api.call("dma_map_single", dev, 0x7F200, 100, 2) == (0xFFFF_F200, None)
    assert api.call("dma_unmap_single", dev, 0xFFFF_F200, 100, 2) == (None, None)
    value, error = api.call("dma_map_single", dev, 0x7F200, 100, 2)
    assert value == DMA_MAPPING_ERROR
    assert isinstance(error, KernelRefused)
    assert api.call("dma_mapping_error", dev, value) == (1, None)
    assert api.call("dma_mapping_error", dev, 0) == (0, None)
    assert [request for request, _ in module.asked] == [abi.MAP_SINGLE, abi.UNMAP_SINGLE, abi.MAP_SINGLE]
    assert module.asked[1][1] == (0, 2, 0xFFFF_F200, 0, 100, 0)


def test_a_warning_during_a_void_function_is_its_error(
    api: KernelDma, dev: KernelDevice, module: FakeModule, log: Path
):
    def warn() -> None:
        # A record a read is what /dev/kmsg gives; a file gives all of them at once, of which the first is read.
        with log.open("ab") as file:
            file.write(f"4,1,2,-;{WARNING}\n".encode())

    module.answers = [(0, 4096, 4096)] * 2
    module.during = warn
    value, error = api.call("dma_iova_unlink", dev, State(), 0, 4096, 0)
    assert value is None
    assert isinstance(error, KernelWarned)
    assert str(error) == "dma_iova_unlink: drivers/iommu/dma-iommu.c:2098 at __iommu_dma_iova_unlink"
    # It is not the next one's.
    module.during = lambda: None
    assert api.call("dma_iova_unlink", dev, State(), 0, 4096, 0) == (None, None)


def test_a_log_that_was_overrun(api: KernelDma, dev: KernelDevice, module: FakeModule, monkeypatch: pytest.MonkeyPatch):
    """Before the call it means nothing; during the call, the warning may be among what was lost."""
    overrun: list[str] = []

    def read(_fd: int, _size: int) -> bytes:
        if overrun:
            raise BrokenPipeError(overrun.pop())
        raise BlockingIOError

    monkeypatch.setattr(os, "read", read)
    module.answers = [(0, 4096, 4096)] * 2
    overrun.append("before")
    assert api.call("dma_iova_unlink", dev, State(), 0, 4096, 0) == (None, None)
    module.during = lambda: overrun.append("during")
    with pytest.raises(LogOverrun, match="dma_iova_unlink: the kernel's log was overrun"):
        api.call("dma_iova_unlink", dev, State(), 0, 4096, 0)


def test_a_warning_from_before_is_nobodys(api: KernelDma, dev: KernelDevice, module: FakeModule, log: Path):
    log.write_bytes(f"4,1,2,-;{WARNING}\n".encode())
    module.answers = [(0, 4096, 4096)]
    assert api.call("dma_iova_unlink", dev, State(), 0, 4096, 0) == (None, None)


@pytest.mark.parametrize(
    ("number", "refusal"),
    [
        (errno.EXDEV, MemoryScattered),
        (errno.EFAULT, NotPinned),
        (errno.ESTALE, StateWithoutRange),
        (errno.EDOM, WouldStop),
        (errno.ENOENT, NothingMapped),
    ],
)
def test_where_the_module_refuses_the_kernel_was_not_called(
    api: KernelDma, dev: KernelDevice, module: FakeModule, number: int, refusal: type[Exception]
):
    module.answers = [number]
    with pytest.raises(refusal):
        api.call("dma_iova_link", dev, State(), 0, 0, 4096, 0)


def test_a_device_that_was_unbound(api: KernelDma, dev: KernelDevice, module: FakeModule):
    module.answers = [errno.ENODEV]
    with pytest.raises(DeviceError, match="dma_iova_test"):
        api.call("dma_iova_link", dev, State(), 0, 0, 4096, 0)


@pytest.mark.parametrize("function", ["qaeMemAlloc", "dma_iova_resize", ""])
def test_a_function_that_it_does_not_have(api: KernelDma, function: str):
    with pytest.raises(NotOfTheKernel):
        api.call(function)


# ---- the device


def test_registers_go_through_sysfs(dev: KernelDevice, tmp_path: Path):
    dev.set_bus_master(True)
    assert dev.read(uapi.PCI_CONFIG_REGION, 4, 2) == b"\x06\x00"
    dev.set_bus_master(False)
    assert dev.read(uapi.PCI_CONFIG_REGION, 4, 2) == b"\x02\x00"
    dev.write(uapi.PCI_BAR0_REGION, 0x80, b"\x01\x02\x03\x04\x05\x06\x07\x08")
    assert dev.read(uapi.PCI_BAR0_REGION, 0x84, 4) == b"\x05\x06\x07\x08"
    with dev.map_region(uapi.PCI_BAR0_REGION) as bar:
        assert bar[0x80] == 1
    assert (tmp_path / "sys/devices/0000:02:00.0/resource0").read_bytes()[0x80:0x82] == b"\x01\x02"
    with pytest.raises(DeviceError):
        dev.map_region(2)


@pytest.mark.parametrize(
    ("region", "offset", "size"),
    [
        (uapi.PCI_BAR0_REGION, 4096, 4),
        (uapi.PCI_BAR0_REGION, -4, 4),
        (uapi.PCI_BAR0_REGION, 2, 4),
        (uapi.PCI_BAR0_REGION, 0, 3),
        (uapi.PCI_CONFIG_REGION, 256, 2),
        (uapi.PCI_CONFIG_REGION, -1, 2),
        (3, 0, 4),
    ],
)
def test_registers_that_are_not_there(
    dev: KernelDevice, monkeypatch: pytest.MonkeyPatch, region: int, offset: int, size: int
):
    with pytest.raises(DeviceError):
        dev.read(region, offset, size)
    # A file would grow where sysfs writes nothing.
    monkeypatch.setattr(os, "pwrite", lambda _fd, data, at: len(os.pread(_fd, len(data), at)))
    with pytest.raises(DeviceError):
        dev.write(region, offset, bytes(size))


def test_settings(dev: KernelDevice, module: FakeModule):
    dev.set_dma_mask((1 << 32) - 1)
    dev.set_untrusted(True)
    dev.set_min_align_mask(4095)
    assert module.asked == [
        (abi.SET_MASK, (b"\xff\xff\xff\xff\0\0\0\0",)),
        (abi.SET_UNTRUSTED, (b"\1\0\0\0",)),
        (abi.SET_MIN_ALIGN_MASK, (b"\xff\x0f\0\0",)),
    ]


def test_it_has_no_interrupts_and_no_reset(dev: KernelDevice):
    assert dev.irq_count(uapi.PCI_MSI_IRQ) == 0
    with pytest.raises(DeviceError) as caught:
        dev.reset()
    assert caught.value.errno == errno.ENOTTY


def test_closing_twice_and_reading_after_it(dev: KernelDevice):
    dev.close()
    dev.close()
    with pytest.raises(DeviceError):
        dev.read(uapi.PCI_BAR0_REGION, 0, 4)


def test_a_device_that_is_not_bound_is_not_opened(tmp_path: Path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DeviceError, match=r"dma_iova_test-0000:02:00\.0"):
        KernelDevice("02:00.0", str(tmp_path), str(tmp_path))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    (tmp_path / "drivers/dma_iova_test").mkdir(parents=True)
    (tmp_path / "devices/0000:02:00.0").mkdir(parents=True)
    (tmp_path / "devices/0000:02:00.0/driver_override").touch()
    (tmp_path / "drivers_probe").touch()
    return tmp_path


def test_binding(sysfs: Path, monkeypatch: pytest.MonkeyPatch):
    device = sysfs / "devices/0000:02:00.0"
    write = kernel_device.pci.write

    def written(path: str, text: str) -> None:
        write(path, text)
        if path.endswith("drivers_probe"):
            (device / "driver").symlink_to(sysfs / "drivers/dma_iova_test")

    monkeypatch.setattr(kernel_device.pci, "write", written)
    bind("02:00.0", str(sysfs))
    assert (device / "driver_override").read_text() == "dma_iova_test"
    assert (sysfs / "drivers_probe").read_text() == "0000:02:00.0"
    (device / "driver_override").unlink()
    bind("02:00.0", str(sysfs))  # it is there already


def test_binding_that_comes_to_nothing(sysfs: Path):
    with pytest.raises(NotTakenOver, match="did not take it"):
        bind("02:00.0", str(sysfs))
    with pytest.raises(NotTakenOver, match="No such file"):
        bind("03:00.0", str(sysfs))
    (sysfs / "drivers/dma_iova_test").rmdir()
    with pytest.raises(NoTestModule, match="is not loaded"):
        bind("02:00.0", str(sysfs))
