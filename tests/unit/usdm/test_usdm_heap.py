from __future__ import annotations

import ctypes
import errno
import itertools

import pytest
from usdm_fake_vfio import MAP, UNMAP, Factory, FakeContainer, FakeVfio

from usdm import errors, memory
from usdm.driver import Usdm
from usdm.limits import DEFAULT_IOVA_RANGES

KIB, MIB = 1024, 1 << 20
ALIGNMENTS = [1 << n for n in range(23)]


def read(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def test_before_registration_memory_has_its_iova_already(vfio: FakeVfio, usdm: Usdm) -> None:
    address = usdm.allocate(1000)
    iova = usdm.virt_to_phys(address)
    assert iova == 0x200000
    fd = vfio.open()
    usdm.register_device(fd)
    assert usdm.virt_to_phys(address) == iova
    assert vfio.of(fd).device_view(iova) == address


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_alignment_in_terms_of_the_iova(usdm: Usdm, fd: int, alignment: int) -> None:
    usdm.allocate(3 * KIB)
    for size in (1, 5000, 2 * MIB, 3 * MIB + 1):
        address = usdm.allocate(size, -1, alignment)
        assert usdm.virt_to_phys(address) % alignment == 0


@pytest.mark.parametrize("alignment", [2 * KIB, 4 * KIB, 64 * KIB, 512 * KIB, MIB])
def test_a1_no_size_fails_at_any_alignment(usdm: Usdm, vfio: FakeVfio, fd: int, alignment: int) -> None:
    for kib in range(1000, 2060, 7):
        address = usdm.allocate(kib * KIB, -1, alignment)
        assert usdm.virt_to_phys(address) % alignment == 0
        usdm.free(address, zero=False)


def test_size_limits(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    address = usdm.allocate(64 * MIB)
    assert memory.is_accessible(address, 64 * MIB)
    with pytest.raises(errors.TooLarge):
        usdm.allocate(64 * MIB + 1)
    with pytest.raises(errors.BadSize):
        usdm.allocate(0)


@pytest.mark.parametrize("alignment", [0, 3, 6, 4097, 8 * MIB, 1 << 63])
def test_bad_alignments(usdm: Usdm, alignment: int) -> None:
    with pytest.raises(errors.BadAlignment):
        usdm.allocate(1, -1, alignment)


def test_the_order_of_the_checks_is_that_of_the_c_library(usdm: Usdm) -> None:
    with pytest.raises(errors.BadSize):
        usdm.allocate(0, -1, 0)
    with pytest.raises(errors.BadAlignment):
        usdm.allocate(65 * MIB, -1, 3)
    with pytest.raises(errors.TooLarge):
        usdm.allocate(65 * MIB, -1, 8 * MIB)


def test_blocks_do_not_overlap_and_are_translated_alone(usdm: Usdm, fd: int) -> None:
    sizes = [1, 1024, 1025, 100_000, 2047 * KIB, 2 * MIB - 1, 2 * MIB]
    blocks = sorted((usdm.allocate(size), size) for size in sizes)
    for (low, size), (high, _) in itertools.pairwise(blocks):
        assert low + size <= high
    for address, size in blocks:
        assert usdm.phys_to_virt(usdm.virt_to_phys(address + size - 1)) == address + size - 1


def test_s1_the_whole_slab_is_the_programs(usdm: Usdm, fd: int) -> None:
    first, second = usdm.allocate(MIB), usdm.allocate(MIB)
    assert abs(first - second) == MIB  # one slab, and not a byte of it for the allocator
    ctypes.memset(min(first, second), 0xFF, 2 * MIB)
    usdm.free(first)
    assert usdm.allocate(MIB) == first
    assert read(second, 64) == b"\xff" * 64


def test_free_clears_and_non_zero_does_not(usdm: Usdm) -> None:
    keep = usdm.allocate(KIB)
    for zero, expected in ((True, 0), (False, 0xAA)):
        address = usdm.allocate(3000)
        ctypes.memset(address, 0xAA, 3 * KIB)
        ctypes.memset(keep, 0xBB, KIB)
        usdm.free(address, zero)
        assert read(address, 3 * KIB) == bytes([expected]) * (3 * KIB)
        assert read(keep, KIB) == b"\xbb" * KIB


def test_d9_the_translation_ends_with_the_allocation(usdm: Usdm, fd: int) -> None:
    for size in (1000, 3 * MIB):
        address = usdm.allocate(size)
        iova = usdm.virt_to_phys(address)
        usdm.free(address)
        with pytest.raises(errors.NotMapped):
            usdm.virt_to_phys(address)
        with pytest.raises(errors.NotMapped):
            usdm.phys_to_virt(iova)
        with pytest.raises(errors.UsdmError):
            usdm.unmap(address & ~4095, 4096)


def test_a_large_free_ends_the_access_before_the_memory(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    address = usdm.allocate(2 * MIB)
    iova = usdm.virt_to_phys(address)
    usdm.free(address)
    assert vfio.of(fd).device_view(iova) is None
    assert not memory.is_accessible(address, 2 * MIB)


@pytest.mark.parametrize("size", [1000, 5000, 3 * MIB])
def test_double_free(usdm: Usdm, fd: int, size: int) -> None:
    other = usdm.allocate(KIB)
    address = usdm.allocate(size)
    usdm.free(address)
    with pytest.raises(errors.DoubleFree):
        usdm.free(address)
    usdm.free(other)
    with pytest.raises(errors.DoubleFree):
        usdm.free(address)


@pytest.mark.parametrize("size", [5000, 3 * MIB])
@pytest.mark.parametrize("offset", [1, 1024, 4096, 4999])
def test_a3_interior_free_frees_nothing(usdm: Usdm, fd: int, size: int, offset: int) -> None:
    address = usdm.allocate(size)
    ctypes.memset(address, 0x55, size)
    with pytest.raises(errors.InteriorPointer):
        usdm.free(address + offset)
    assert read(address, size) == b"\x55" * size
    assert usdm.virt_to_phys(address + offset)
    usdm.free(address)


def test_free_of_what_was_never_handed_out(usdm: Usdm, fd: int, buffer: Factory) -> None:
    address = usdm.allocate(KIB)
    mine = buffer(4096).address
    usdm.map(mine, 4096)
    for unknown in (mine, address + 4096, 4096, (1 << 64) - 1):
        with pytest.raises(errors.NotAllocated):
            usdm.free(unknown)
    with pytest.raises(errors.NullAddress):
        usdm.free(0)
    assert usdm.virt_to_phys(mine)


def test_an_address_that_comes_back_is_no_double_free(usdm: Usdm) -> None:
    address = usdm.allocate(KIB)
    usdm.free(address)
    assert usdm.allocate(KIB) == address
    usdm.free(address)


def test_four_empty_slabs_are_kept(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    blocks = [usdm.allocate(2 * MIB - 1) for _ in range(6)]
    assert len(vfio.of(fd).entries) == 6
    for address in blocks:
        usdm.free(address)
    assert len(vfio.of(fd).entries) == 4
    again = [usdm.allocate(KIB), usdm.allocate(2 * MIB - 1)]
    assert len(vfio.of(fd).entries) == 4
    assert again[0] in blocks


def test_blocks_that_wait_keep_no_slab(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    pairs = [(usdm.allocate(MIB), usdm.allocate(MIB)) for _ in range(7)]
    for first, second in pairs:
        usdm.free(first)  # waits: its slab is in use
        usdm.free(second)
    assert len(vfio.of(fd).entries) == 4


def test_old_room_is_found_in_any_slab(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    blocks = [usdm.allocate(MIB) for _ in range(60)]
    for address in blocks[::2]:
        usdm.free(address)
    again = [usdm.allocate(MIB) for _ in range(30)]
    assert sorted(again) == sorted(blocks[::2])
    assert len(vfio.of(fd).entries) == 30


def test_a_refused_mapping_leaves_nothing(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    for size in (KIB, 3 * MIB):
        vfio.fail(MAP, errno.ENOMEM)
        with pytest.raises(errors.MapFailed, match="RLIMIT_MEMLOCK") as caught:
            usdm.allocate(size)
        assert caught.value.errno == errno.ENOMEM
    assert len(usdm._space.regions) == 0
    assert vfio.of(fd).entries == {}
    assert usdm.allocate(KIB)


def test_a_large_allocation_that_cannot_be_unmapped_stays(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    address = usdm.allocate(3 * MIB)
    iova = usdm.virt_to_phys(address)
    vfio.fail(UNMAP, errno.EINVAL)
    with pytest.raises(errors.UnmapFailed):
        usdm.free(address)
    assert usdm.virt_to_phys(address) == iova
    ctypes.memset(address, 1, 3 * MIB)
    usdm.free(address)
    assert vfio.of(fd).entries == {}


def test_a_slab_that_cannot_be_unmapped_is_kept(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    blocks = [usdm.allocate(2 * MIB - 1) for _ in range(5)]
    for address in blocks[:-1]:
        usdm.free(address)
    vfio.fail(UNMAP, errno.EINVAL)
    usdm.free(blocks[-1])
    assert len(vfio.of(fd).entries) == 5
    with pytest.raises(errors.DoubleFree):
        usdm.free(blocks[-1])
    assert usdm.allocate(KIB) == blocks[-1]


def test_no_iova_left(vfio: FakeVfio, usdm: Usdm) -> None:
    usdm.register_device(vfio.open(FakeContainer(ranges=((0, 6 * MIB - 1),))))
    usdm.allocate(KIB)
    usdm.allocate(2 * MIB)
    with pytest.raises(errors.NoIovaSpace):
        usdm.allocate(2 * MIB)
    assert usdm.allocate(KIB)


def test_plain_memory(usdm: Usdm) -> None:
    address = usdm.allocate_plain(5000)
    assert read(address, 5000) == bytes(5000)
    assert usdm.allocate_plain(0)
    with pytest.raises(errors.NotMapped):
        usdm.virt_to_phys(address)
    with pytest.raises(errors.NotAllocated):
        usdm.free(address)
    with pytest.raises(errors.NotAllocated):
        usdm.free_plain(address + 16)
    usdm.free_plain(address)
    with pytest.raises(errors.DoubleFree):
        usdm.free_plain(address)
    with pytest.raises(errors.NullAddress):
        usdm.free_plain(0)
    with pytest.raises(errors.NoMemory):
        usdm.allocate_plain((1 << 63) + 1)


def test_close_gives_everything_back(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    small, large = usdm.allocate(KIB), usdm.allocate(3 * MIB)
    usdm.close()
    assert vfio.of(fd).entries == {}
    assert not memory.is_accessible(large, 3 * MIB)
    assert not usdm.registered
    with pytest.raises(errors.NotAllocated):
        usdm.free(small)


def test_the_default_ranges_are_39_bits_without_the_msi_window() -> None:
    assert DEFAULT_IOVA_RANGES == ((0, 0xFEDFFFFF), (0xFEF00000, 2**39 - 1))


def test_room_that_was_missing_is_found_after_a_free(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    first, second = usdm.allocate(MIB), usdm.allocate(MIB - KIB)
    other = usdm.allocate(MIB)  # no room in the first slab
    usdm.free(first)
    assert usdm.allocate(MIB) == first
    usdm.free(first)
    usdm.free(second)
    usdm.free(other)
    assert len({usdm.allocate(2 * MIB - 1) for _ in range(2)}) == 2
    assert len(vfio.of(fd).entries) == 2


def test_a_refused_mapping_gives_its_iova_back(vfio: FakeVfio, usdm: Usdm, buffer: Factory) -> None:
    usdm.register_device(vfio.open(FakeContainer(ranges=((0, 6 * MIB - 1),))))
    virt = buffer(4096).address
    for _ in range(5):
        vfio.fail(MAP, errno.ENOSPC)
        with pytest.raises(errors.MapFailed):
            usdm.allocate(4 * MIB)
        vfio.fail(MAP, errno.ENOSPC)
        with pytest.raises(errors.MapFailed):
            usdm.map(virt, 4096)
    assert usdm.allocate(4 * MIB)
