"""The functions by their C names: return values, what is logged, `last_error`; sizes of every build."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from usdm_fake_vfio import FakeVfio
from usdm_faulty_kernel import FaultyKernel
from usdm_rig import PAGE, Rig

from usdm import errors, icp_sal_iommu, last, qae_mem
from usdm.frames import Frames
from usdm.icp_sal_iommu import (
    CPA_STATUS_FAIL,
    CPA_STATUS_SUCCESS,
    icp_sal_iommu_context,
    icp_sal_iommu_get_remap_size,
    icp_sal_iommu_map,
    icp_sal_iommu_unmap,
    last_error,
)
from usdm.kernel import Kernel
from usdm.limits import MAX_U64
from usdm.remap_size import BUILDS, remap_size_of

AT = 0x5A000000


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    made = Rig(FaultyKernel(FakeVfio()))
    made.kernel.frames.give(made.virt, [AT // PAGE, AT // PAGE + 1])
    monkeypatch.setattr(qae_mem, "_driver", made.usdm)
    yield made
    made.vfio.close()
    last.thread.error = None


def test_the_documented_way(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """The seven steps of the usage section; physical addresses are the rig's."""
    assert qae_mem.qaeRegisterDevice(rig.fd) == 0
    assert icp_sal_iommu_context() == "domain0"
    size = icp_sal_iommu_get_remap_size(5000)
    assert size == 2 * PAGE
    assert icp_sal_iommu_map(AT, AT, size) == CPA_STATUS_SUCCESS == 0
    assert rig.vfio.of(rig.fd).device_view(AT + PAGE) == rig.virt + PAGE
    assert icp_sal_iommu_unmap(AT, size) == CPA_STATUS_SUCCESS
    assert rig.vfio.of(rig.fd).entries == {}
    assert last_error() is None
    assert capsys.readouterr().err == ""


def test_a_failure_says_why(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert icp_sal_iommu_map(AT, AT, PAGE) == CPA_STATUS_FAIL == -1
    assert isinstance(last_error(), errors.NotRegistered)
    line = capsys.readouterr().err
    assert line == (
        f"icp_sal_iommu_map: NotRegistered: phaddr = {AT:#x}: a VFIO container must be registered first "
        "(the machine has an IOMMU: dmar0)\n"
    )
    qae_mem.qaeRegisterDevice(rig.fd)
    assert last_error() is None  # one for all C functions of the thread
    assert icp_sal_iommu_unmap(AT, PAGE) == CPA_STATUS_FAIL
    assert isinstance(qae_mem.last_error(), errors.NotRemapped)
    assert "icp_sal_iommu_unmap: NotRemapped: " in capsys.readouterr().err
    assert icp_sal_iommu_get_remap_size(MAX_U64) == 0
    assert isinstance(last_error(), errors.RangeOverflow)
    assert icp_sal_iommu_get_remap_size(0) == 0
    assert last_error() is None


def test_notes_are_told_too(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be undone is said, line by line."""
    qae_mem.qaeRegisterDevice(rig.fd)
    rig.kernel.frames.give(rig.virt + (4 << 20), [AT // PAGE + 1])
    rig.kernel.frames.frames[rig.virt // PAGE + 1] = 77
    rig.kernel.fail("ioctl", 28, 1)
    rig.kernel.fail("ioctl", 22)
    assert icp_sal_iommu_map(AT, AT, 2 * PAGE) == CPA_STATUS_FAIL
    assert isinstance(last_error(), errors.TooManyMappings)
    first, second = capsys.readouterr().err.splitlines()
    assert "TooManyMappings" in first
    assert second.startswith("icp_sal_iommu_map: left mapped: ")


@pytest.mark.parametrize("end", ["closed", "none"])
def test_nobody_reads_the_log(rig: Rig, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    with open(os.devnull, "w") as file:
        pass
    monkeypatch.setattr(sys, "stderr", file if end == "closed" else None)
    assert icp_sal_iommu_map(AT, AT, PAGE) == CPA_STATUS_FAIL
    assert isinstance(last_error(), errors.NotRegistered)


@pytest.mark.parametrize("bad", [-1, 1 << 64, 1.5, "1", None, True])
def test_what_is_no_c_integer(rig: Rig, bad: object) -> None:
    assert icp_sal_iommu_get_remap_size(bad) == 0  # type: ignore[arg-type]
    assert isinstance(last_error(), errors.BadArgument)
    for call in (
        lambda: icp_sal_iommu_map(bad, 0, PAGE),  # type: ignore[arg-type]
        lambda: icp_sal_iommu_map(0, bad, PAGE),  # type: ignore[arg-type]
        lambda: icp_sal_iommu_map(0, 0, bad),  # type: ignore[arg-type]
        lambda: icp_sal_iommu_unmap(bad, PAGE),  # type: ignore[arg-type]
        lambda: icp_sal_iommu_unmap(0, bad),  # type: ignore[arg-type]
    ):
        assert call() == CPA_STATUS_FAIL
        assert isinstance(last_error(), errors.BadArgument)
    for build in BUILDS:
        with pytest.raises(errors.BadArgument):
            remap_size_of(build, bad)  # type: ignore[arg-type]


SIZES = {
    0: (0, 0, 0, 0, 4096, 0),
    1: (4096, 0, 1, 1, 4096, 4096),
    4095: (4096, 0, 4095, 4095, 4096, 4096),
    4096: (4096, 0, 4096, 4096, 8192, 4096),
    4097: (8192, 0, 4097, 4097, 8192, 8192),
    8192: (8192, 0, 8192, 8192, 12288, 8192),
    MAX_U64 - 4095: (MAX_U64 - 4095, 0, MAX_U64 - 4095, MAX_U64 - 4095, None, MAX_U64 - 4095),
    MAX_U64: (None, 0, MAX_U64, MAX_U64, None, 0),
}


@pytest.mark.parametrize("size", SIZES)
def test_remap_sizes(size: int) -> None:
    for build, wanted in zip(BUILDS, SIZES[size], strict=True):
        if wanted is None:
            with pytest.raises((errors.RangeOverflow, errors.BadArgument)):
                remap_size_of(build, size)
        else:
            assert remap_size_of(build, size) == wanted, build
    last.thread.error = None
    assert icp_sal_iommu_get_remap_size(size) == (SIZES[size][0] or 0)


def test_a_build_that_nobody_knows() -> None:
    with pytest.raises(errors.BadArgument, match="the builds are"):
        remap_size_of("other", 1)


def test_a_forked_child_has_no_context(rig: Rig) -> None:
    qae_mem.qaeRegisterDevice(rig.fd)
    pid = os.fork()
    if pid == 0:
        fails = icp_sal_iommu_map(AT, AT, PAGE) == -1 and icp_sal_iommu_context() is None
        os._exit(0 if fails and isinstance(last_error(), errors.ForkedChild) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_it_loads_nothing_that_is_slow_to_load() -> None:
    root = str(icp_sal_iommu.__file__).rpartition("/usdm/")[0]
    code = (
        f"import sys; sys.path.insert(0, {root!r}); import usdm.icp_sal_iommu;"
        "print(*sorted({'typing', 'threading', 're', 'logging', 'pathlib', 'enum', 'dataclasses'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# ---- the kernel's own answers


def test_the_kernels_own_pagemap() -> None:
    """Pages are found by their frames: one, all, and those of another order; a page never touched has none."""
    area = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    virt = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in range(32):
        area[page * PAGE] = 1
    frames = Frames(Kernel())
    try:
        first = frames.physical_address(virt + 100)
    except errors.PhysicalAddressHidden:
        with pytest.raises(errors.PhysicalAddressHidden):
            frames.find(1, 1)
        pytest.skip("frame numbers are shown to CAP_SYS_ADMIN only")
    assert first % PAGE == 100
    with pytest.raises(errors.PageNotPresent):
        frames.physical_address(virt + 40 * PAGE)
    numbers = frames.of(virt, 34)
    assert numbers[32:] == [0, 0]
    assert len(set(numbers[:32])) == 32
    for index in (0, 17, 31):
        assert frames.find(numbers[index], 1) == [(virt + index * PAGE, 1)]
    assert Kernel().names_in("/sys/class/no-such-class") == []


class Told(Kernel):
    """Tells entries of pagemap as they are."""

    def __init__(self, entries: list[int]) -> None:
        super().__init__()
        self.entries = {PAGE * (1 << 20): entries}

    def read_pagemap(self, address: int, count: int) -> bytes:
        told = next((e[(address - at) // PAGE :] for at, e in self.entries.items() if at <= address), [1 << 63 | 1])
        return b"".join(entry.to_bytes(8, "little") for entry in told[:count])

    def read_maps(self) -> bytes:
        at = PAGE * (1 << 20)
        return f"{at:x}-{at + 8 * PAGE:x} rw-p 0 0 0\n".encode()


def test_bytes_that_only_look_like_a_frame_number() -> None:
    """An entry that begins inside another one, one of a page that is swapped out, one with other flags."""
    present, frame = 1 << 63, 0xABCDE
    inside = [present | frame << 8 | 7, present | 0x80]
    swapped = [frame, 1 << 62 | frame]
    for entries, where in (
        (inside, None),
        (swapped, None),
        ([*inside, *swapped, present | frame], 4),
        ([present | 1 << 61 | 1 << 55 | frame], 0),
    ):
        frames = Frames(Told(entries))
        at = PAGE * (1 << 20)
        if where is None:
            with pytest.raises(errors.ForeignMemory):
                frames.find(frame, 1)
        else:
            assert frames.find(frame, 1) == [(at + where * PAGE, 1)]


@pytest.mark.skipif(os.getuid() != 0, reason="somebody has to give CAP_SYS_ADMIN up")
def test_without_the_capability_the_kernel_hides_frame_numbers() -> None:
    """All read 0; an address 0 never comes of it."""
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        os.setgid(65534)
        os.setuid(65534)
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self stays readable
        frames = Frames(Kernel())
        area = ctypes.create_string_buffer(PAGE)
        area.value = b"1"
        hidden = 0
        for call in (lambda: frames.physical_address(ctypes.addressof(area)), lambda: frames.find(1, 1)):
            try:
                call()
            except errors.PhysicalAddressHidden as error:
                hidden += "read 0" in str(error)
        os._exit(0 if hidden == 2 else 1)
    assert os.waitpid(pid, 0)[1] == 0
