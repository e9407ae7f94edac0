from __future__ import annotations

import errno
import os

import pytest
from usdm_fake_vfio import MAP, UNMAP, Factory, FakeContainer, FakeVfio, descriptors

from usdm import errors
from usdm.driver import Usdm

PAGE, MIB = 4096, 1 << 20


def test_registrations_are_counted(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    address = usdm.allocate(PAGE)
    usdm.register_device(fd)
    usdm.register_device(fd)
    for _ in range(2):
        usdm.unregister_device(fd)
        assert vfio.of(fd).device_view(usdm.virt_to_phys(address)) == address
    usdm.unregister_device(fd)
    assert vfio.of(fd).entries == {}
    assert not usdm.registered
    with pytest.raises(errors.NotRegistered):
        usdm.unregister_device(fd)


def test_another_descriptor_of_the_same_container(usdm: Usdm, fd: int) -> None:
    copy = os.dup(fd)
    usdm.register_device(copy)
    usdm.unregister_device(copy)
    os.close(copy)
    assert usdm.registered
    usdm.unregister_device(fd)
    assert not usdm.registered


def test_another_container_is_refused(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    other = vfio.open()
    before = descriptors()
    for call in (usdm.register_device, usdm.unregister_device):
        with pytest.raises(errors.WrongContainer, match=f"registered is {fd}"):
            call(other)
    assert descriptors() == before
    with pytest.raises(errors.NotAContainer):
        usdm.register_device(-1)
    assert usdm.registered


def test_the_wrong_containers_ranges_are_not_taken(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    with pytest.raises(errors.WrongContainer):
        usdm.register_device(vfio.open(FakeContainer(ranges=((1 << 40, (1 << 41) - 1),))))
    assert usdm.map(buffer(PAGE).address, PAGE) == 0x200000


def test_the_caller_may_close_the_descriptor(usdm: Usdm, vfio: FakeVfio, buffer: Factory) -> None:
    fd = vfio.open()
    container = vfio.of(fd)
    usdm.register_device(fd)
    os.close(fd)
    vfio.fds.remove(fd)
    usdm.map(buffer(PAGE).address, PAGE)
    assert len(container.entries) == 1
    usdm.unregister_device(fd)
    assert container.entries == {}


def test_a_number_given_again_is_another_container(usdm: Usdm, vfio: FakeVfio) -> None:
    fd = vfio.open()
    usdm.register_device(fd)
    os.close(fd)
    vfio.fds.remove(fd)
    again = vfio.open()
    if again != fd:  # somebody else took the number
        os.dup2(again, fd)
        vfio.fds.append(fd)
    with pytest.raises(errors.WrongContainer):
        usdm.register_device(fd)
    usdm.unregister_device(fd)


def test_kernels_that_cannot_compare_leave_the_numbers(
    usdm: Usdm, vfio: FakeVfio, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usdm.kernel.Kernel.same_file", lambda *_: None)
    usdm.register_device(fd)
    copy = os.dup(fd)
    with pytest.raises(errors.WrongContainer):
        usdm.register_device(copy)
    os.close(copy)


def test_user_mappings_end_with_the_last_registration(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    """D10: the device keeps no access, the translation ends, and nothing of it is in the way later."""
    virt = buffer(4 * PAGE).address
    iova = usdm.map(virt, 4 * PAGE)
    usdm.register_device(fd)
    usdm.unregister_device(fd)
    assert usdm.virt_to_phys(virt) == iova
    usdm.unregister_device(fd)
    assert vfio.of(fd).entries == {}
    with pytest.raises(errors.NotMapped):
        usdm.virt_to_phys(virt + PAGE)
    with pytest.raises(errors.NotMapped):
        usdm.phys_to_virt(iova)
    with pytest.raises(errors.NotMapped):
        usdm.unmap(virt, 4 * PAGE)
    usdm.register_device(fd)
    again = usdm.map(virt, 4 * PAGE)
    assert again != iova
    assert vfio.of(fd).entries == {again: (virt, 4 * PAGE)}


def test_allocations_keep_their_iova_over_registrations(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    small, large = usdm.allocate(PAGE), usdm.allocate(3 * MIB, -1, 4 * MIB)
    before = usdm.virt_to_phys(small), usdm.virt_to_phys(large)
    usdm.unregister_device(fd)
    assert (usdm.virt_to_phys(small), usdm.virt_to_phys(large)) == before
    third = usdm.allocate(3 * MIB)
    other = vfio.open(FakeContainer(v2=True))
    usdm.register_device(other)
    assert (usdm.virt_to_phys(small), usdm.virt_to_phys(large)) == before
    for address in (small, large, third):
        assert vfio.of(other).device_view(usdm.virt_to_phys(address)) == address
    assert vfio.of(fd).entries == {}


@pytest.mark.parametrize("position", [0, 1, 2])
def test_r1_a_failed_registration_leaves_nothing_mapped(
    usdm: Usdm, vfio: FakeVfio, buffer: Factory, position: int
) -> None:
    addresses = [usdm.allocate(3 * MIB) for _ in range(3)]
    fd = vfio.open()
    before = descriptors()
    vfio.fail(MAP, errno.ENOMEM, skip=position)
    with pytest.raises(errors.MapFailed):
        usdm.register_device(fd)
    assert vfio.of(fd).entries == {}
    assert not usdm.registered
    assert descriptors() == before
    with pytest.raises(errors.NotRegistered):
        usdm.map(buffer(PAGE).address, PAGE)
    usdm.register_device(fd)
    for address in addresses:
        assert vfio.of(fd).device_view(usdm.virt_to_phys(address)) == address


def test_a_rollback_that_fails_is_told(usdm: Usdm, vfio: FakeVfio) -> None:
    for _ in range(3):
        usdm.allocate(3 * MIB)
    vfio.fail(MAP, errno.ENOMEM, skip=2)
    vfio.fail(UNMAP, errno.EINVAL)
    fd = vfio.open()
    with pytest.raises(errors.MapFailed) as caught:
        usdm.register_device(fd)
    assert "left mapped" in caught.value.__notes__[0]
    assert len(vfio.of(fd).entries) == 1  # the other one was unmapped all the same


@pytest.mark.parametrize("position", [0, 1, 2])
def test_r1_unregistration_tries_every_region(
    usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory, position: int
) -> None:
    usdm.allocate(3 * MIB)
    usdm.allocate(PAGE)
    virt = buffer(PAGE).address
    usdm.map(virt, PAGE)
    vfio.fail(UNMAP, errno.EINVAL, skip=position)
    with pytest.raises(errors.UnmapFailed):
        usdm.unregister_device(fd)
    assert len(vfio.of(fd).entries) == 1
    assert not usdm.registered
    with pytest.raises(errors.NotMapped):
        usdm.virt_to_phys(virt)


def test_two_failures_are_both_told(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    usdm.allocate(3 * MIB)
    usdm.allocate(3 * MIB)
    vfio.fail(UNMAP, errno.EINVAL)
    vfio.fail(UNMAP, errno.EIO)
    with pytest.raises(errors.UnmapFailed) as caught:
        usdm.unregister_device(fd)
    assert len(caught.value.__notes__) == 1


def test_an_iova_that_the_container_cannot_translate(usdm: Usdm, vfio: FakeVfio) -> None:
    address = usdm.allocate(3 * MIB)
    iova = usdm.virt_to_phys(address)
    fd = vfio.open(FakeContainer(ranges=((1 << 32, (1 << 33) - 1),)))
    with pytest.raises(errors.IovaOutOfRange, match="0x200000"):
        usdm.register_device(fd)
    assert not usdm.registered
    assert vfio.calls == []
    assert usdm.virt_to_phys(address) == iova
    usdm.free(address)
    usdm.register_device(fd)
    assert usdm.virt_to_phys(usdm.allocate(PAGE)) == 1 << 32


def test_empty_slabs_are_in_no_registrations_way(usdm: Usdm, vfio: FakeVfio) -> None:
    usdm.free(usdm.allocate(PAGE))
    usdm.register_device(vfio.open(FakeContainer(ranges=((1 << 32, (1 << 33) - 1),))))
    assert vfio.calls == []


def test_d11_an_allocation_before_the_first_registration_keeps_the_window_free(
    usdm: Usdm, vfio: FakeVfio, buffer: Factory
) -> None:
    usdm.allocate(PAGE)
    fd = vfio.open(FakeContainer(ranges=((0, 0xFEDFFFFF), (0xFEF00000, (1 << 32) - 1))))
    usdm.register_device(fd)
    virt = buffer(PAGE).address
    for _ in range(2100):
        iova = usdm.map(virt, PAGE)
        assert not 0xFEE00000 <= iova < 0xFF000000
        usdm.unmap(virt, PAGE)


def test_no_iommu(usdm: Usdm, vfio: FakeVfio) -> None:
    fd = vfio.open(FakeContainer("noiommu"))
    address = usdm.allocate(PAGE)
    with pytest.raises(errors.NoIommuMode, match="before"):
        usdm.register_device(fd)
    assert not usdm.registered
    usdm.free(address)
    usdm.register_device(fd)
    usdm.register_device(fd)
    usdm.unregister_device(fd)
    usdm.unregister_device(fd)
    assert not usdm.registered
    assert usdm.allocate(PAGE)


def test_the_module_parameter_does_not_decide(
    usdm: Usdm, vfio: FakeVfio, buffer: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args, **more: opened.append(args[0]) or real(*args, **more))
    usdm.register_device(vfio.open())
    assert usdm.map(buffer(PAGE).address, PAGE)
    assert opened == []  # no file is looked at
