from __future__ import annotations

import errno
import os

import pytest
from usdm_fake_vfio import GET_INFO, RANGES_39, FakeContainer, FakeVfio, descriptors

from usdm import errors
from usdm.container import AttachedContainer
from usdm.kernel import Kernel
from usdm.limits import DEFAULT_IOVA_RANGES


@pytest.mark.parametrize("kind", ["other", "unset", "spapr"])
def test_what_is_no_usable_container_is_refused(vfio: FakeVfio, kind: str) -> None:
    fd = vfio.open(FakeContainer(kind))
    before = descriptors()
    with pytest.raises(errors.NotAContainer):
        AttachedContainer(fd, Kernel(vfio.ioctl))
    assert descriptors() == before  # nothing is left open
    assert vfio.calls == []


def test_closed_and_negative_descriptors(vfio: FakeVfio) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    for number in (fd, -1, -(1 << 31)):
        with pytest.raises(errors.NotAContainer, match="Bad file descriptor"):
            AttachedContainer(number, Kernel(vfio.ioctl))


def test_a_real_file_that_is_no_container() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(errors.NotAContainer):
        AttachedContainer(fd)
    os.close(fd)


def test_another_api_version(vfio: FakeVfio) -> None:
    with pytest.raises(errors.Unsupported, match="version 1"):
        AttachedContainer(vfio.open(FakeContainer(api=1)), Kernel(vfio.ioctl))


def test_pages_of_64_kib_are_too_coarse(vfio: FakeVfio) -> None:
    with pytest.raises(errors.Unsupported, match="4 KiB is needed"):
        AttachedContainer(vfio.open(FakeContainer(page_sizes=0x10000)), Kernel(vfio.ioctl))


def test_ranges(vfio: FakeVfio) -> None:
    container = AttachedContainer(vfio.open(FakeContainer(ranges=RANGES_39)), Kernel(vfio.ioctl))
    assert container.iova_ranges == RANGES_39
    container.close()


def test_a_kernel_without_ranges(vfio: FakeVfio) -> None:
    container = AttachedContainer(vfio.open(FakeContainer(ranges=None)), Kernel(vfio.ioctl))
    assert container.iova_ranges == DEFAULT_IOVA_RANGES
    container.close()


def test_more_ranges_than_the_first_buffer_holds(vfio: FakeVfio) -> None:
    ranges = tuple((n << 24, (n << 24) + (1 << 23) - 1) for n in range(400))
    container = AttachedContainer(vfio.open(FakeContainer(ranges=ranges)), Kernel(vfio.ioctl))
    assert container.iova_ranges == ranges
    container.close()


def test_no_iommu_is_what_the_container_says(vfio: FakeVfio) -> None:
    container = AttachedContainer(vfio.open(FakeContainer("noiommu")), Kernel(vfio.ioctl))
    assert container.no_iommu
    assert container.iova_ranges == ()
    container.close()


def test_get_info_failing(vfio: FakeVfio) -> None:
    vfio.fail(GET_INFO, errno.ENODEV)
    with pytest.raises(errors.NotAContainer, match="No such device"):
        AttachedContainer(vfio.open(), Kernel(vfio.ioctl))


@pytest.mark.parametrize("old_kernel", [False, True])
def test_same_file(monkeypatch: pytest.MonkeyPatch, old_kernel: bool) -> None:
    if old_kernel:
        monkeypatch.setattr("usdm.kernel._F_DUPFD_QUERY", 1024 + 999)
    first, other = os.memfd_create("a"), os.memfd_create("b")
    copy = os.dup(first)
    assert Kernel().same_file(first, first) in (True, None)
    assert Kernel().same_file(first, copy) in (True, None)
    assert not Kernel().same_file(first, other)
    os.close(copy)
    assert not Kernel().same_file(first, copy)
    os.close(first)
    os.close(other)


def test_closing_twice_closes_nothing_else(vfio: FakeVfio) -> None:
    container = AttachedContainer(vfio.open(), Kernel(vfio.ioctl))
    container.close()
    fd = os.open("/dev/null", os.O_RDONLY)
    container.close()
    os.fstat(fd)
    os.close(fd)
