from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from usdm_fake_vfio import Factory, FakeContainer, FakeVfio
from usdm_faulty_kernel import FaultyKernel

from usdm import errors, last, qae_mem
from usdm.driver import Usdm
from usdm.qae_mem import (
    Pointer,
    last_error,
    qaeAtFork,
    qaeMemAlloc,
    qaeMemAllocNUMA,
    qaeMemDestroy,
    qaeMemFree,
    qaeMemFreeNonZeroNUMA,
    qaeMemFreeNUMA,
    qaeMemInit,
    qaeMemInitAndReturnFd,
    qaeMemMapContiguousIova,
    qaeMemUnmapContiguousIova,
    qaePhysToVirtNUMA,
    qaeRegisterDevice,
    qaeUnregisterDevice,
    qaeVirtToPhysNUMA,
)

PAGE = 4096


@pytest.fixture(autouse=True)
def default(usdm: Usdm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Usdm]:
    monkeypatch.setattr(qae_mem, "_driver", usdm)
    yield usdm
    last.thread.error = None


def name() -> str:
    return type(last_error()).__name__


def test_the_way_through(vfio: FakeVfio, buffer: Factory) -> None:
    fd, virt = vfio.open(), buffer(PAGE).address
    assert qaeRegisterDevice(fd) == 0
    address = qaeMemAllocNUMA(PAGE, -1, PAGE)
    assert address is not None
    iova = qaeVirtToPhysNUMA(address)
    assert qaePhysToVirtNUMA(iova) == address
    mapped = qaeMemMapContiguousIova(virt, PAGE)
    assert mapped
    assert mapped == qaeVirtToPhysNUMA(virt)
    assert qaeMemUnmapContiguousIova(virt, PAGE) == 0
    pointer = Pointer(address)
    qaeMemFreeNUMA(pointer)
    assert pointer.value is None
    assert qaeUnregisterDevice(fd) == 0
    assert last_error() is None


def test_failure_values(vfio: FakeVfio, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    assert (qaeMemMapContiguousIova(virt, PAGE), name()) == (0, "NotRegistered")
    assert (qaeMemMapContiguousIova(None, PAGE), name()) == (0, "NullAddress")
    assert (qaeMemUnmapContiguousIova(None, PAGE), name()) == (1, "NullAddress")
    assert (qaeMemUnmapContiguousIova(virt, PAGE), name()) == (1, "NotMapped")
    assert (qaeMemMapContiguousIova(virt, False), name()) == (0, "BadArgument")
    assert (qaeMemAllocNUMA(0, -1, PAGE), name()) == (None, "BadSize")
    assert (qaeMemAllocNUMA(1, -1, 3), name()) == (None, "BadAlignment")
    assert (qaeVirtToPhysNUMA(virt), name()) == (0, "NotMapped")
    assert (qaeVirtToPhysNUMA(None), name()) == (0, "NullAddress")
    assert (qaeVirtToPhysNUMA(False), name()) == (0, "BadArgument")
    assert (qaePhysToVirtNUMA(0x200000), name()) == (None, "NotMapped")
    assert (qaeMemAlloc(-1), name()) == (None, "BadArgument")


def test_registration_values(vfio: FakeVfio) -> None:
    fd = vfio.open()
    assert (qaeUnregisterDevice(fd), name()) == (1, "NotRegistered")
    assert (qaeRegisterDevice(-1), name()) == (-1, "NotAContainer")
    assert (qaeRegisterDevice(vfio.open(FakeContainer("unset"))), name()) == (-1, "NotAContainer")
    assert qaeRegisterDevice(fd) == 0
    assert (qaeRegisterDevice(vfio.open()), name()) == (1, "WrongContainer")
    assert (qaeUnregisterDevice(-1), name()) == (1, "WrongContainer")
    assert qaeUnregisterDevice(fd) == 0


@pytest.mark.parametrize("free", [qaeMemFreeNUMA, qaeMemFreeNonZeroNUMA, qaeMemFree])
def test_a_refused_free_leaves_the_pointer(free: object) -> None:
    address = qaeMemAllocNUMA(5000, -1, PAGE)
    assert address is not None
    pointer = Pointer(address + 1024)
    free(pointer)  # type: ignore[operator]
    assert pointer.value == address + 1024
    assert name() in ("InteriorPointer", "NotAllocated")
    for bad, expected in ((None, "NullAddress"), (Pointer(), "NullAddress"), (Pointer(0), "NullAddress")):
        free(bad)  # type: ignore[operator]
        assert name() == expected
    free(address)  # type: ignore[operator]
    assert name() == "BadArgument"
    assert qaeVirtToPhysNUMA(address)


def test_zeroing_and_not() -> None:
    keep = qaeMemAllocNUMA(1024, -1, 1)
    assert keep is not None
    for free, expected in ((qaeMemFreeNUMA, b"\0"), (qaeMemFreeNonZeroNUMA, b"\x77")):
        address = qaeMemAllocNUMA(1024, -1, 1)
        assert address is not None
        ctypes.memset(address, 0x77, 1024)
        pointer = Pointer(address)
        free(pointer)
        assert pointer.value is None
        assert ctypes.string_at(address, 1024) == expected * 1024


def test_plain() -> None:
    pointer = Pointer(qaeMemAlloc(100))
    assert pointer.value
    qaeMemFree(pointer)
    assert pointer.value is None
    assert last_error() is None


def test_init_and_destroy(vfio: FakeVfio) -> None:
    assert qaeMemInit() == 0
    fd = vfio.open()
    assert qaeRegisterDevice(fd) == 0
    address = qaeMemAllocNUMA(PAGE, -1, PAGE)
    qaeMemDestroy()
    assert last_error() is None
    assert vfio.of(fd).entries == {}
    assert (qaeVirtToPhysNUMA(address), name()) == (0, "NotMapped")
    assert qaeMemAllocNUMA(PAGE, -1, PAGE)


def test_freebsds_function() -> None:
    descriptor = Pointer(5)
    assert qaeMemInitAndReturnFd(descriptor) == 1
    assert (descriptor.value, name()) == (5, "Unsupported")
    assert "FreeBSD" in str(last_error())


def test_hugepages_that_are_not_there(vfio: FakeVfio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qae_mem, "_driver", Usdm(kernel=FaultyKernel(vfio), hugepages=4))
    for _ in range(2):
        assert (qaeMemInit(), name()) == (-1, "HugepagesNotConfigured")
        assert (qaeMemAllocNUMA(PAGE, -1, PAGE), name()) == (None, "HugepagesNotConfigured")
        assert (qaeRegisterDevice(vfio.open()), name()) == (-1, "HugepagesNotConfigured")


def test_thread_specific_mode(vfio: FakeVfio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qae_mem, "_driver", Usdm(vfio.ioctl, thread_specific=True))
    assert (qaeMemMapContiguousIova(PAGE, PAGE), name()) == (0, "Unsupported")
    assert (qaeMemUnmapContiguousIova(PAGE, PAGE), name()) == (1, "Unsupported")
    assert qaeMemAllocNUMA(PAGE, -1, PAGE)


def test_at_fork_in_a_parent() -> None:
    address = qaeMemAllocNUMA(PAGE, -1, PAGE)
    qaeAtFork()
    assert last_error() is None
    assert qaeVirtToPhysNUMA(address)


def test_l1_the_last_error_is_of_the_thread_and_ends_with_a_success() -> None:
    assert qaeMemAllocNUMA(0, -1, 1) is None
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(last_error()))
    thread.start()
    thread.join()
    assert seen == [None]
    error = last_error()
    assert isinstance(error, errors.BadSize)
    assert error.__traceback__ is None
    assert qaeMemAllocNUMA(1, -1, 1)
    assert last_error() is None


def test_the_import_is_light_and_needs_no_package() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import usdm.qae_mem, usdm.vfio; "
        "print([m for m in ('typing', 'dataclasses', 'enum', 'logging', 'inspect', 'threading', 'pathlib', 're') "
        "if m in sys.modules])"
    )
    root = str(qae_mem.__file__).rpartition("/usdm/")[0]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program, root], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
