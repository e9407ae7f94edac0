from __future__ import annotations

import ctypes
import errno
import mmap

import pytest
from usdm_fake_vfio import MAP, RANGES_39, UNMAP, Factory, FakeContainer, FakeVfio

from usdm import errors
from usdm.driver import Usdm
from usdm.kernel import Kernel, libc

PAGE, MIB, GIB = 4096, 1 << 20, 1 << 30


def gone(usdm: Usdm, virt: int, size: int) -> bool:
    """No page of a range is translated."""
    for address in range(virt, virt + size, PAGE):
        try:
            usdm.virt_to_phys(address)
        except errors.NotMapped:
            continue
        return False
    return True


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def any_fd(request: pytest.FixtureRequest, vfio: FakeVfio, usdm: Usdm) -> int:
    fd = vfio.open(FakeContainer(v2=request.param))
    usdm.register_device(fd)
    return fd


def test_map_and_translate_every_page(usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory) -> None:
    virt = buffer(3 * MIB).address
    iova = usdm.map(virt, 3 * MIB)
    assert iova == 0x200000
    for offset in (0, 1, PAGE, 3 * MIB - 1):
        assert usdm.virt_to_phys(virt + offset) == iova + offset
        assert usdm.phys_to_virt(iova + offset) == virt + offset
        assert vfio.of(any_fd).device_view(iova + offset) == virt + offset
    with pytest.raises(errors.NotMapped):
        usdm.virt_to_phys(virt + 3 * MIB)
    with pytest.raises(errors.NotMapped):
        usdm.phys_to_virt(iova + 3 * MIB)


def test_two_gib_is_allowed(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    # reserved address space only: nothing touches it
    area = mmap.mmap(-1, 2 * GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    view = ctypes.c_char.from_buffer(area)
    virt = ctypes.addressof(view)
    del view
    iova = usdm.map(virt, 2 * GIB)
    assert usdm.virt_to_phys(virt + 2 * GIB - 1) == iova + 2 * GIB - 1
    usdm.unmap(virt, 2 * GIB)
    area.close()


@pytest.mark.parametrize("call", ["map", "unmap"])
@pytest.mark.parametrize(
    ("virt", "size", "expected"),
    [
        (0, PAGE, errors.NullAddress),
        (0, 0, errors.NullAddress),
        (0x1000, 0, errors.BadSize),
        (0x1001, 0, errors.BadSize),
        (0x1000, 2 * GIB + 1, errors.TooLarge),
        (0x1000, 2 * GIB + PAGE, errors.TooLarge),
        (0x1001, PAGE, errors.NotAligned),
        (0x1400, PAGE, errors.NotAligned),
        (0x1000, 1, errors.NotAligned),
        (0x1000, PAGE + 1024, errors.NotAligned),
        ((1 << 64) - PAGE, 2 * PAGE, errors.AddressNotAccessible),
    ],
)
def test_arguments(
    usdm: Usdm, vfio: FakeVfio, fd: int, call: str, virt: int, size: int, expected: type[errors.UsdmError]
) -> None:
    with pytest.raises(expected) as caught:
        getattr(usdm, call)(virt, size)
    assert caught.value.argument in ("virt", "size")
    assert caught.value.value in (virt, size)
    assert vfio.calls == []


def test_nothing_registered(usdm: Usdm, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    with pytest.raises(errors.NotRegistered):
        usdm.map(virt, PAGE)
    with pytest.raises(errors.NotMapped):
        usdm.unmap(virt, PAGE)


def test_not_accessible(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    virt = buffer(4 * PAGE).address
    hole = Kernel().mmap(3 * PAGE)
    Kernel().munmap(hole + PAGE, PAGE)
    for address, size in ((hole, 3 * PAGE), (hole + PAGE, PAGE), (0x1000, PAGE), ((1 << 47) - PAGE, PAGE)):
        with pytest.raises(errors.AddressNotAccessible):
            usdm.map(address, size)
    with pytest.raises(errors.AddressNotAccessible):
        usdm.map((1 << 64) - 2 * PAGE, PAGE)
    assert vfio.calls == []
    assert usdm.map(virt, 4 * PAGE)
    Kernel().munmap(hole, PAGE)
    Kernel().munmap(hole + 2 * PAGE, PAGE)


def test_read_only_memory_is_the_kernels_refusal(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    vfio.check_memory = True
    virt = Kernel().mmap(PAGE)
    libc.mprotect(ctypes.c_void_p(virt), PAGE, mmap.PROT_READ)
    with pytest.raises(errors.MapFailed, match="read-only") as caught:
        usdm.map(virt, PAGE)
    assert caught.value.errno == errno.EFAULT
    Kernel().munmap(virt, PAGE)


@pytest.mark.parametrize(
    ("number", "meaning"),
    [
        (errno.ENOSPC, "65,535 mappings"),
        (errno.ENOMEM, "RLIMIT_MEMLOCK"),
        (errno.EFAULT, "not mapped in this process"),
        (errno.EEXIST, "mapped already"),
        (errno.EINVAL, "reserved window"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failing_map_leaves_nothing_and_says_why(
    usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory, number: int, meaning: str
) -> None:
    virt = buffer(PAGE).address
    vfio.fail(MAP, number)
    with pytest.raises(errors.MapFailed, match=meaning) as caught:
        usdm.map(virt, PAGE)
    assert caught.value.errno == number
    assert gone(usdm, virt, PAGE)
    assert len(usdm._space.regions) == 0
    assert usdm.map(virt, PAGE) == 0x400000  # the next attempt uses the next IOVA


def test_d3_a_mapping_beside_usdm_is_not_taken_for_ours(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    mine, theirs = buffer(PAGE).address, buffer(PAGE).address
    vfio.of(fd).map(theirs, 0x200000, PAGE, 3, check_memory=False)
    with pytest.raises(errors.MapFailed) as caught:
        usdm.map(mine, PAGE)
    assert caught.value.errno == errno.EEXIST
    assert gone(usdm, mine, PAGE)
    iova = usdm.map(mine, PAGE)
    assert vfio.of(fd).device_view(iova) == mine
    assert vfio.of(fd).device_view(0x200000) == theirs


def test_the_limit_of_mappings(vfio: FakeVfio, usdm: Usdm, buffer: Factory) -> None:
    usdm.register_device(vfio.open(FakeContainer(limit=3)))
    virt = buffer(8 * PAGE).address
    for n in range(3):
        usdm.map(virt + 2 * n * PAGE, PAGE)
    with pytest.raises(errors.MapFailed) as caught:
        usdm.map(virt + 6 * PAGE, PAGE)
    assert caught.value.errno == errno.ENOSPC
    usdm.unmap(virt, PAGE)
    usdm.map(virt + 6 * PAGE, PAGE)


def test_d1_every_page_loses_its_translation(usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory) -> None:
    virt = buffer(4 * MIB).address
    iova = usdm.map(virt, 4 * MIB)
    usdm.unmap(virt, 4 * MIB)
    assert gone(usdm, virt, 4 * MIB)
    assert vfio.of(any_fd).entries == {}
    with pytest.raises(errors.NotMapped):
        usdm.phys_to_virt(iova + PAGE)


def test_d2_unmapping_the_tail_again_touches_nobody(usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory) -> None:
    other, virt = buffer(PAGE).address, buffer(4 * MIB).address
    usdm.map(other, PAGE)
    usdm.map(virt, 4 * MIB)
    usdm.unmap(virt, 4 * MIB)
    calls = list(vfio.calls)
    for offset in (0, PAGE, 2 * MIB):
        with pytest.raises(errors.NotMapped):
            usdm.unmap(virt + offset, PAGE)
    assert vfio.calls == calls
    assert vfio.of(any_fd).device_view(usdm.virt_to_phys(other)) == other


@pytest.mark.parametrize(("offset", "pages"), [(0, 4), (0, 1), (1, 1), (3, 4), (-3, 4), (-1, 8)])
def test_d4_d5_a_live_range_cannot_be_mapped_again(
    usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory, offset: int, pages: int
) -> None:
    start = buffer(16 * PAGE).address + 4 * PAGE
    iova = usdm.map(start, 4 * PAGE)
    with pytest.raises(errors.AlreadyMapped):
        usdm.map(start + offset * PAGE, pages * PAGE)
    assert [usdm.virt_to_phys(start + n * PAGE) for n in range(4)] == [iova + n * PAGE for n in range(4)]
    usdm.unmap(start, 4 * PAGE)
    assert vfio.of(any_fd).entries == {}
    usdm.map(start + offset * PAGE, pages * PAGE)


def test_neighbours_are_no_overlap(usdm: Usdm, fd: int, buffer: Factory) -> None:
    virt = buffer(12 * PAGE).address
    usdm.map(virt + 4 * PAGE, 4 * PAGE)
    usdm.map(virt, 4 * PAGE)
    usdm.map(virt + 8 * PAGE, 4 * PAGE)


@pytest.mark.parametrize("size", [PAGE, 2 * PAGE, 8 * PAGE, 4 * MIB])
def test_d6_another_size_is_refused(usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory, size: int) -> None:
    virt = buffer(8 * MIB).address
    iova = usdm.map(virt, 3 * PAGE)
    calls = list(vfio.calls)
    with pytest.raises(errors.SizeMismatch) as caught:
        usdm.unmap(virt, size)
    assert (caught.value.argument, caught.value.value) == ("size", size)
    assert vfio.calls == calls
    assert usdm.virt_to_phys(virt + 2 * PAGE) == iova + 2 * PAGE
    usdm.unmap(virt, 3 * PAGE)


@pytest.mark.parametrize("offset", [PAGE, 2 * MIB])
def test_d7_an_interior_page_is_refused(usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory, offset: int) -> None:
    virt = buffer(4 * MIB).address
    usdm.map(virt, 4 * MIB)
    calls = list(vfio.calls)
    for size in (PAGE, 4 * MIB - offset, 4 * MIB):
        with pytest.raises(errors.InteriorPointer):
            usdm.unmap(virt + offset, size)
    assert vfio.calls == calls
    assert usdm.virt_to_phys(virt + offset)


@pytest.mark.parametrize("size", [PAGE, 3 * MIB])
def test_d8_allocated_memory_is_neither_mapped_nor_unmapped(usdm: Usdm, vfio: FakeVfio, any_fd: int, size: int) -> None:
    address = usdm.allocate(size, -1, PAGE)
    other = usdm.allocate(PAGE, -1, PAGE)
    calls = list(vfio.calls)
    for call in (usdm.map, usdm.unmap):
        with pytest.raises(errors.AllocatedMemory):
            call(address, PAGE)
        with pytest.raises(errors.AllocatedMemory):
            call(other, size)
    assert vfio.calls == calls
    assert vfio.of(any_fd).device_view(usdm.virt_to_phys(other)) == other
    usdm.free(address)


def test_d9_freed_room_in_a_slab_is_still_usdms(usdm: Usdm, vfio: FakeVfio, any_fd: int) -> None:
    address = usdm.allocate(PAGE, -1, PAGE)
    usdm.allocate(PAGE, -1, PAGE)
    usdm.free(address)
    with pytest.raises(errors.AllocatedMemory):
        usdm.unmap(address, PAGE)
    with pytest.raises(errors.AllocatedMemory):
        usdm.map(address, PAGE)


def test_d11_d12_a_wrap_over_the_whole_space_never_fails(vfio: FakeVfio, usdm: Usdm, buffer: Factory) -> None:
    usdm.register_device(vfio.open(FakeContainer(ranges=((0, 0xFEDFFFFF), (0xFEF00000, (1 << 33) - 1)))))
    virt = buffer(PAGE).address
    seen = set()
    for _ in range(2 * (1 << 33) // (2 * MIB)):
        seen.add(usdm.map(virt, PAGE))
        usdm.unmap(virt, PAGE)
    assert len(seen) == (1 << 33) // (2 * MIB) - 2


def test_an_iova_is_not_used_again_soon(usdm: Usdm, fd: int, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    seen = []
    for _ in range(100):
        seen.append(usdm.map(virt, PAGE))
        usdm.unmap(virt, PAGE)
    assert len(set(seen)) == 100


def test_what_waits_to_be_put_back_is_bounded(usdm: Usdm, fd: int, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    for _ in range(10_000):
        usdm.map(virt, PAGE)
        usdm.unmap(virt, PAGE)
    assert len(usdm._space.iovas.released_units) <= 4096


def test_no_iova_space(vfio: FakeVfio, usdm: Usdm, buffer: Factory) -> None:
    usdm.register_device(vfio.open(FakeContainer(ranges=((0, 10 * MIB - 1),))))
    virt = buffer(12 * MIB).address
    usdm.map(virt, 4 * MIB)
    with pytest.raises(errors.NoIovaSpace):
        usdm.map(virt + 4 * MIB, 6 * MIB)
    assert len(usdm._space.regions) == 1
    assert usdm.map(virt + 4 * MIB, 4 * MIB)


def test_a_failing_unmap_changes_nothing(usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory) -> None:
    virt = buffer(2 * PAGE).address
    iova = usdm.map(virt, 2 * PAGE)
    vfio.fail(UNMAP, errno.EINVAL)
    with pytest.raises(errors.UnmapFailed) as caught:
        usdm.unmap(virt, 2 * PAGE)
    assert caught.value.errno == errno.EINVAL
    assert usdm.virt_to_phys(virt + PAGE) == iova + PAGE
    assert vfio.of(any_fd).device_view(iova) == virt
    usdm.unmap(virt, 2 * PAGE)
    assert gone(usdm, virt, 2 * PAGE)


def test_a_mapping_removed_beside_usdm_is_told_and_forgotten(
    usdm: Usdm, vfio: FakeVfio, any_fd: int, buffer: Factory
) -> None:
    virt = buffer(PAGE).address
    iova = usdm.map(virt, PAGE)
    vfio.of(any_fd).unmap(iova, PAGE)
    with pytest.raises(errors.UnmapFailed, match="0x0 of 0x1000 bytes") as caught:
        usdm.unmap(virt, PAGE)
    assert caught.value.errno == errno.ENOENT
    assert gone(usdm, virt, PAGE)
    with pytest.raises(errors.NotMapped):
        usdm.unmap(virt, PAGE)
    assert usdm.map(virt, PAGE)


def test_no_iommu_refuses(vfio: FakeVfio, usdm: Usdm, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    usdm.register_device(vfio.open(FakeContainer("noiommu")))
    for call in (usdm.map, usdm.unmap):
        with pytest.raises(errors.NoIommuMode):
            call(virt, PAGE)
        with pytest.raises(errors.NullAddress):
            call(0, PAGE)
    with pytest.raises(errors.NoIommuMode):
        usdm.allocate(PAGE)
    assert vfio.calls == []


def test_translation_of_the_unknown(usdm: Usdm, fd: int) -> None:
    for call in (usdm.virt_to_phys, usdm.phys_to_virt):
        with pytest.raises(errors.NullAddress):
            call(0)
        for address in (1, 0x200000, (1 << 64) - 1):
            with pytest.raises(errors.NotMapped):
                call(address)


def test_the_width_is_the_kernels(vfio: FakeVfio, usdm: Usdm) -> None:
    usdm.register_device(vfio.open(FakeContainer(ranges=RANGES_39)))
    assert usdm.iova_ranges == RANGES_39
