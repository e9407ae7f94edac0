"""A container without an IOMMU: hugepages, whose IOVA is their physical address."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from usdm_fake_vfio import FakeContainer, FakeVfio
from usdm_faulty_kernel import FaultyKernel
from usdm_rig import KIB, MIB, PAGE, Rig

from usdm import errors, qae_mem

FRAMES = 512  # of a hugepage


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def create(pool: int = 8, quota: int = 8, frames: tuple[int, ...] = ()) -> Rig:
        rig = Rig(FaultyKernel(FakeVfio(), pool), quota)
        rig.fd = rig.vfio.open(FakeContainer("noiommu"))
        rig.kernel.huge_frames = [number * FRAMES for number in frames]
        made.append(rig)
        return rig

    yield create
    for rig in made:
        rig.vfio.close()


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    made = make()
    made.usdm.register_device(made.fd)
    return made


def held(rig: Rig) -> tuple[object, ...]:
    stats = rig.usdm.statistics()
    names = ("iova_free", "hugepages_used", "registrations", "mappings", "maps", "unmaps", "allocations", "pages_left")
    return (sorted(rig.kernel.memory.items()), *(stats[name] for name in names), rig.usdm.maps(), rig.kernel.taken)


def physical(rig: Rig, virt: int) -> int:
    return rig.kernel.frames.frames[virt // PAGE] * PAGE + virt % PAGE


def test_the_iova_is_the_physical_address(rig: Rig) -> None:
    small = [rig.usdm.allocate(5 * KIB) for _ in range(20)]
    large = rig.usdm.allocate(6 * MIB)
    assert rig.usdm.statistics()["iommu"] == "no"
    for start, size in [(address, 5 * KIB) for address in small] + [(large, 6 * MIB)]:
        for address in (start, start + size - 1, start + size // 2):
            assert rig.usdm.virt_to_phys(address) == physical(rig, address)
            assert rig.usdm.phys_to_virt(physical(rig, address)) == address
    assert {one["mapped"] for one in rig.usdm.maps()} == {0}
    gone = rig.usdm.virt_to_phys(large)
    rig.usdm.free(large)
    with pytest.raises(errors.NotMapped):
        rig.usdm.phys_to_virt(gone)
    assert rig.vfio.calls == []
    for address in small:
        rig.usdm.free(address)
    rig.usdm.unregister_device(rig.fd)
    assert rig.kernel.taken == 0
    assert rig.kernel.memory == {}


@pytest.mark.parametrize("alignment", [1, 64, PAGE, 64 * KIB, MIB, 2 * MIB, 4 * MIB])
def test_alignment_is_of_the_physical_address(make: Callable[..., Rig], alignment: int) -> None:
    rig = make(frames=(101, 103, 102, 104))
    rig.usdm.register_device(rig.fd)
    rig.usdm.allocate(KIB)
    for size in (KIB, 4 * MIB):
        address = rig.usdm.allocate(size, -1, alignment)
        assert physical(rig, address) % alignment == 0
        assert physical(rig, address + size - 1) == rig.usdm.virt_to_phys(address) + size - 1


def test_hugepages_in_any_order_are_put_in_order(make: Callable[..., Rig]) -> None:
    """The kernel often gives the highest first, and some that others have are missing in between."""
    rig = make(8, 8, (90, 87, 70, 88, 89, 20, 71, 86))
    rig.usdm.register_device(rig.fd)
    address = rig.usdm.allocate(8 * MIB)
    assert rig.usdm.virt_to_phys(address) == 87 * 2 * MIB
    assert [physical(rig, address + page * 2 * MIB) for page in range(4)] == [n * 2 * MIB for n in (87, 88, 89, 90)]
    assert rig.kernel.taken == 4  # 70 went back
    assert rig.usdm.statistics()["hugepages_used"] == 4
    rig.usdm.free(address)
    assert rig.kernel.taken == 0
    assert rig.kernel.memory == {}


@pytest.mark.parametrize(("pool", "quota", "why"), [(8, 3, "3 of 3 held"), (3, 8, "0 of 3 free")])
def test_hugepages_that_are_not_contiguous(make: Callable[..., Rig], pool: int, quota: int, why: str) -> None:
    rig = make(pool, quota, (10, 12, 14))
    rig.usdm.register_device(rig.fd)
    before = held(rig)
    with pytest.raises(errors.NotContiguous, match=why):
        rig.usdm.allocate(4 * MIB)
    assert held(rig) == before
    assert rig.usdm.allocate(KIB)


def test_a_hugepage_at_the_wrong_multiple(make: Callable[..., Rig]) -> None:
    rig = make(3, 8, (11, 13, 15))
    rig.usdm.register_device(rig.fd)
    with pytest.raises(errors.NotContiguous):
        rig.usdm.allocate(KIB, -1, 4 * MIB)
    rig.kernel.huge_frames = [5 * FRAMES, 6 * FRAMES]
    assert rig.usdm.virt_to_phys(rig.usdm.allocate(KIB, -1, 4 * MIB)) == 12 * MIB


@pytest.mark.parametrize("n", range(4))
def test_pages_that_cannot_be_moved(make: Callable[..., Rig], n: int) -> None:
    rig = make(8, 8, (13, 12, 11))
    rig.usdm.register_device(rig.fd)
    before = held(rig)
    rig.kernel.fail("mremap", errno.EINVAL, n)
    if n < 3:
        with pytest.raises(errors.NoMemory, match="mremap"):
            rig.usdm.allocate(6 * MIB)
        assert held(rig) == before
        rig.kernel.huge_frames = [13 * FRAMES, 12 * FRAMES, 11 * FRAMES]
    assert rig.usdm.virt_to_phys(rig.usdm.allocate(6 * MIB)) == 11 * 2 * MIB


def test_4_kib_mode_says_that_hugepages_are_needed(make: Callable[..., Rig]) -> None:
    rig = make(quota=0)
    rig.usdm.register_device(rig.fd)
    before = held(rig)
    for size in (KIB, 4 * MIB):
        with pytest.raises(errors.HugepagesNeeded, match="QAT_MAX_2M_HPG_PER_PROCESS"):
            rig.usdm.allocate(size)
    assert held(rig) == before
    rig.usdm.unregister_device(rig.fd)
    assert rig.usdm.allocate(KIB)


def test_no_free_hugepage(make: Callable[..., Rig]) -> None:
    rig = make(2, 8)
    rig.usdm.register_device(rig.fd)
    rig.kernel.taken = 2
    before = held(rig)
    for size in (KIB, 4 * MIB):
        with pytest.raises(errors.HugepagesExhausted):
            rig.usdm.allocate(size)
    assert held(rig) == before


@pytest.mark.parametrize("size", [KIB, 4 * MIB])
def test_frame_numbers_that_the_process_may_not_see(rig: Rig, size: int) -> None:
    before = held(rig)
    rig.kernel.frames.hidden = True
    with pytest.raises(errors.PhysicalAddressHidden, match="CAP_SYS_ADMIN"):
        rig.usdm.allocate(size)
    rig.kernel.frames.hidden = False
    for n in range(9):
        rig.kernel.fail("pagemap", errno.EPERM, n)
        try:
            rig.usdm.allocate(size)
        except errors.PhysicalAddressHidden:
            assert held(rig) == before
        else:
            rig.kernel.heal()
            break
    assert n > 0


def test_a_slab_whose_frames_are_not_in_order(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel calls a hugepage is looked at all the same, each of its frames."""
    before = held(rig)
    real = FaultyKernel.read_pagemap

    def swapped(kernel: FaultyKernel, address: int, count: int) -> bytes:
        data = real(kernel, address, count)
        return data[:800] + data[808:816] + data[800:808] + data[816:]

    monkeypatch.setattr(FaultyKernel, "read_pagemap", swapped)
    with pytest.raises(errors.NotContiguous):
        rig.usdm.allocate(KIB)
    assert held(rig) == before


def test_map_and_unmap_are_refused_and_change_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.usdm.allocate(KIB)
    before = held(rig)
    monkeypatch.setattr(qae_mem, "_driver", rig.usdm)
    assert qae_mem.qaeMemMapContiguousIova(rig.virt, 2 * MIB) == 0
    assert isinstance(qae_mem.last_error(), errors.NoIommuMode)
    assert qae_mem.qaeMemUnmapContiguousIova(rig.virt, 2 * MIB) == 1
    assert isinstance(qae_mem.last_error(), errors.NoIommuMode)
    assert held(rig) == before
    assert rig.vfio.calls == []


def test_memory_of_before_has_no_physical_address(make: Callable[..., Rig]) -> None:
    """Its IOVA is known to the program already, so the registration is refused; freed, it is in nobody's way."""
    rig = make()
    address = rig.usdm.allocate(KIB)
    iova = rig.usdm.virt_to_phys(address)
    before = held(rig)
    with pytest.raises(errors.NoIommuMode, match=f"{iova & -2 * MIB:#x}; free it"):
        rig.usdm.register_device(rig.fd)
    assert held(rig) == before
    rig.usdm.free(address)
    rig.usdm.register_device(rig.fd)
    assert rig.usdm.virt_to_phys(again := rig.usdm.allocate(KIB)) == physical(rig, again)


def test_memory_keeps_its_address_over_registrations(make: Callable[..., Rig]) -> None:
    """Physical addresses are IOVAs as good as any for an IOMMU; what it makes up meanwhile is none of them."""
    rig = make(30, 30, tuple(range(1, 6)))
    rig.usdm.register_device(rig.fd)
    kept = [rig.usdm.allocate(2 * MIB) for _ in range(5)]
    told = [rig.usdm.virt_to_phys(address) for address in kept]
    assert told == [n * 2 * MIB for n in range(1, 6)]
    rig.usdm.unregister_device(rig.fd)
    rig.usdm.register_device(rig.fd)
    rig.usdm.unregister_device(rig.fd)
    free = rig.usdm.statistics()["iova_free"]
    more = [rig.usdm.allocate(2 * MIB), rig.usdm.allocate(4 * MIB)]
    iovas = [rig.usdm.virt_to_phys(address) for address in more]
    assert set(range(iovas[1], iovas[1] + 4 * MIB, 2 * MIB)).isdisjoint({*told, iovas[0]})
    with pytest.raises(errors.NoIommuMode):
        rig.usdm.register_device(rig.fd)
    with_iommu = rig.vfio.open(FakeContainer())
    rig.usdm.register_device(with_iommu)
    assert [rig.usdm.virt_to_phys(address) for address in (*kept, *more)] == [*told, *iovas]
    assert rig.vfio.of(with_iommu).device_view(told[0]) == kept[0]
    rig.fd = with_iommu
    rig.consistent()
    rig.usdm.unregister_device(with_iommu)
    for address in (*kept, *more):
        rig.usdm.free(address)
    assert rig.usdm.statistics()["iova_free"] > free
    assert rig.kernel.taken == 0


def test_an_address_that_no_iommu_can_have(make: Callable[..., Rig]) -> None:
    rig = make(8, 8, (1 << 30,))
    rig.usdm.register_device(rig.fd)
    address = rig.usdm.allocate(KIB)
    rig.usdm.unregister_device(rig.fd)
    free = rig.usdm.statistics()["iova_free"]
    with pytest.raises(errors.IovaOutOfRange):
        rig.usdm.register_device(rig.vfio.open(FakeContainer()))
    rig.usdm.free(address)
    rig.usdm.close()
    assert rig.usdm.statistics()["iova_free"] == free


def test_close_gives_everything_back(rig: Rig) -> None:
    rig.usdm.allocate(KIB)
    rig.usdm.allocate(4 * MIB)
    rig.usdm.close()
    assert rig.kernel.memory == {}
    assert rig.kernel.taken == 0
    assert rig.usdm.statistics()["iova_free"] == (1 << 39) - 4 * MIB
