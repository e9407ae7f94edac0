"""icp_sal_iommu on a simulated kernel: what is mapped, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest
from usdm_fake_vfio import RANGES_39, FakeContainer, FakeVfio
from usdm_faulty_kernel import FaultyKernel
from usdm_rig import MIB, PAGE, Rig

from usdm import dump, errors
from usdm.limits import MAX_U64

HERE = 0x5A000  # a frame


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(FaultyKernel(FakeVfio()))
    yield made
    made.vfio.close()


@pytest.fixture
def pf(rig: Rig) -> Rig:
    """Registered, with 64 pages of the program's at `virt` whose frames begin at `HERE`."""
    rig.usdm.register_device(rig.fd)
    rig.kernel.frames.give(rig.virt, list(range(HERE, HERE + 64)))
    return rig


def held(rig: Rig) -> tuple[object, ...]:
    return (*rig.held(), rig.usdm.remappings())


def reaches(rig: Rig, iova: int) -> int | None:
    view: int | None = rig.vfio.of(rig.fd).device_view(iova)
    return view


def test_one_to_one(pf: Rig) -> None:
    before = held(pf)
    at = HERE * PAGE
    pf.usdm.remap(at, at, 3 * PAGE)
    assert pf.vfio.of(pf.fd).entries == {at: (pf.virt, 3 * PAGE)}
    assert pf.usdm.remappings() == [{"iova": at, "phaddr": at, "size": 3 * PAGE, "pieces": 1}]
    stats = pf.usdm.statistics()
    assert (stats["remapped"], stats["bytes_remapped"], stats["container_mappings"]) == (1, 3 * PAGE, 1)
    assert dump.lines(pf.usdm)[0] == "physical 00005a000000-00005a003000 iova 00005a000000 remapped in 1 pieces"
    pf.usdm.unremap(at, 3 * PAGE)
    assert held(pf) == before
    pf.end()


@pytest.mark.parametrize("iova", [0, PAGE, 0xFEDFF000, 0xFEF00000, (1 << 48) - PAGE])
def test_another_iova(pf: Rig, iova: int) -> None:
    """IOVA 0 too is one for the kernel, and the pages beside the window, in a unit that USDM never hands out."""
    before = held(pf)
    pf.usdm.remap((HERE + 5) * PAGE, iova, PAGE)
    assert reaches(pf, iova) == pf.virt + 5 * PAGE
    pf.usdm.unremap(iova, PAGE)
    assert held(pf) == before


def test_virtual_addresses_in_pieces(pf: Rig) -> None:
    """Frames that follow each other, at three places of virtual memory, the first of them last in memory."""
    first, second = pf.virt + 2 * MIB, pf.virt + 4 * MIB
    pf.kernel.frames.give(first, [7002, 7003, 7004, 9])
    pf.kernel.frames.give(second, [7000, 7001, 0, 7005])
    pf.usdm.remap(7000 * PAGE, 0x900000, 6 * PAGE)
    assert pf.vfio.of(pf.fd).entries == {
        0x900000: (second, 2 * PAGE),
        0x902000: (first, 3 * PAGE),
        0x905000: (second + 3 * PAGE, PAGE),
    }
    assert pf.usdm.statistics()["container_mappings"] == 3
    assert pf.usdm.remappings()[0]["pieces"] == 3
    pf.usdm.unremap(0x900000, 6 * PAGE)
    assert pf.vfio.of(pf.fd).entries == {}


def test_a_run_longer_than_a_look(pf: Rig) -> None:
    pf.kernel.frames.give(pf.virt, list(range(HERE, HERE + 1300)))
    pf.usdm.remap((HERE + 1) * PAGE, 0x900000, 1299 * PAGE)
    assert pf.vfio.of(pf.fd).entries == {0x900000: (pf.virt + PAGE, 1299 * PAGE)}
    with pytest.raises(errors.ForeignMemory):
        pf.usdm.remap((HERE + 1) * PAGE, 0x90000000, 1300 * PAGE)


def test_memory_of_usdm(pf: Rig) -> None:
    address = pf.usdm.allocate(100 * 1024)
    pf.kernel.frames.fresh(int(pf.usdm.maps()[0]["virt"]), 2 * MIB, 2 * MIB)
    frame = pf.kernel.frames.frames[address // PAGE]
    calls = len(pf.kernel.calls)
    pf.usdm.remap(frame * PAGE, frame * PAGE, 25 * PAGE)
    # Its own slabs are looked at first: what the process has besides is found no sooner.
    assert pf.kernel.calls[calls:].count("maps") == 0
    assert reaches(pf, frame * PAGE) == address - address % PAGE
    pf.usdm.free(address)
    assert reaches(pf, frame * PAGE) is not None  # pinned until the entry ends


def test_a_frame_number_that_begins_with_zeros_and_one_inside_other_bytes(pf: Rig) -> None:
    for frame in (0x10000, 0x1, 0xAB00CD, 0xFF_FFFF_FFFF):
        if frame == 1:
            continue  # the page that is always there
        pf.kernel.frames.give(pf.virt, [frame << 8 & 0xFFFFFFFF | 1, frame, frame + 7])
        pf.usdm.remap(frame * PAGE, 0x900000, PAGE)
        assert reaches(pf, 0x900000) == pf.virt + PAGE
        pf.usdm.unremap(0x900000, PAGE)


@pytest.mark.parametrize(
    ("phaddr", "iova", "size", "kind", "argument"),
    [
        (HERE * PAGE, HERE * PAGE, 0, "BadSize", "size"),
        (HERE * PAGE + 1, HERE * PAGE, PAGE, "NotAligned", "phaddr"),
        (HERE * PAGE, HERE * PAGE + 512, PAGE, "NotAligned", "iova"),
        (HERE * PAGE, HERE * PAGE, PAGE - 1, "NotAligned", "size"),
        (MAX_U64 + 1 - PAGE, 0x900000, 2 * PAGE, "RangeOverflow", "phaddr"),
        (HERE * PAGE, MAX_U64 + 1 - PAGE, 2 * PAGE, "RangeOverflow", "iova"),
        (HERE * PAGE, MAX_U64 + 1 - PAGE, PAGE, "IovaReserved", "iova"),
        (HERE * PAGE, 0xFEE00000, PAGE, "IovaReserved", "iova"),
        (HERE * PAGE, 0xFEDFF000, 2 * PAGE, "IovaReserved", "iova"),
        (HERE * PAGE, 0xFEEFF000, 2 * PAGE, "IovaReserved", "iova"),
        (HERE * PAGE, 0xFED00000, 4 * MIB, "IovaReserved", "iova"),
        (HERE * PAGE, 1 << 48, PAGE, "IovaReserved", "iova"),
        (HERE * PAGE, (1 << 48) - PAGE, 2 * PAGE, "IovaReserved", "iova"),
        (0, 0x900000, PAGE, "ForeignMemory", "phaddr"),
        (HERE * PAGE, 0x900000, 65 * PAGE, "ForeignMemory", "phaddr"),
        ((HERE - 1) * PAGE, 0x900000, 2 * PAGE, "ForeignMemory", "phaddr"),
        (0x7000 * PAGE, 0x900000, PAGE, "ForeignMemory", "phaddr"),
        (MAX_U64 + 1 - PAGE, 0x900000, PAGE, "ForeignMemory", "phaddr"),
        (HERE * PAGE, 1 << 32, 1 << 46, "ForeignMemory", "phaddr"),
        (-PAGE, 0x900000, PAGE, "BadArgument", "phaddr"),
        (HERE * PAGE, MAX_U64 + 1, PAGE, "BadArgument", "iova"),
        (HERE * PAGE, 0x900000, True, "BadArgument", "size"),
        (HERE * PAGE, None, PAGE, "BadArgument", "iova"),
    ],
)
def test_refused_ranges(pf: Rig, phaddr: int, iova: int, size: int, kind: str, argument: str) -> None:
    pf.usdm.remap((HERE + 60) * PAGE, 0x40000000, PAGE)
    before = held(pf)
    with pytest.raises(errors.UsdmError) as caught:
        pf.usdm.remap(phaddr, iova, size)
    assert (type(caught.value).__name__, caught.value.argument) == (kind, argument)
    assert held(pf) == before


def test_memory_that_must_not_be_written(pf: Rig) -> None:
    pf.kernel.frames.give(pf.virt + 2 * MIB, [0x7000], "r--p")
    with pytest.raises(errors.ForeignMemory):
        pf.usdm.remap(0x7000 * PAGE, 0x900000, PAGE)


def test_a_page_that_is_swapped_out(pf: Rig) -> None:
    """Its bits mean something else then: nothing of them is a frame number."""
    pf.kernel.frames.give(pf.virt + 2 * MIB, [0] * 8)
    for frame in (5, 10):
        with pytest.raises(errors.ForeignMemory):
            pf.usdm.remap(frame * PAGE, 0x900000, PAGE)


@pytest.mark.parametrize(("width", "beyond"), [(RANGES_39, 1 << 39)])
def test_the_width_is_the_containers(rig: Rig, width: tuple[tuple[int, int], ...], beyond: int) -> None:
    rig.usdm.register_device(rig.vfio.open(FakeContainer(ranges=width)))
    rig.kernel.frames.give(rig.virt, [HERE])
    with pytest.raises(errors.IovaReserved):
        rig.usdm.remap(HERE * PAGE, beyond, PAGE)
    rig.usdm.remap(HERE * PAGE, beyond - PAGE, PAGE)


def test_entries_that_overlap(pf: Rig) -> None:
    pf.usdm.remap(HERE * PAGE, 0x902000, 4 * PAGE)
    before = held(pf)
    for iova, pages in ((0x902000, 4), (0x901000, 2), (0x905000, 1), (0x903000, 1), (0x900000, 10)):
        with pytest.raises(errors.IovaTaken, match="0x902000"):
            pf.usdm.remap((HERE + 10) * PAGE, iova, pages * PAGE)
    assert held(pf) == before
    pf.usdm.remap((HERE + 10) * PAGE, 0x901000, PAGE)
    pf.usdm.remap((HERE + 11) * PAGE, 0x906000, PAGE)
    pf.usdm.remap(HERE * PAGE, 0x907000, PAGE)  # the same memory at another IOVA
    assert len(pf.usdm.remappings()) == 4


def test_iovas_that_usdm_has_given_out(pf: Rig) -> None:
    slab = pf.usdm.virt_to_phys(pf.usdm.allocate(PAGE))
    large = pf.usdm.virt_to_phys(pf.usdm.allocate(4 * MIB + PAGE))
    user = pf.usdm.map(pf.virt + 6 * MIB - PAGE, PAGE)
    before = held(pf)
    for iova in (slab, slab + 2 * MIB - PAGE, large, large + 6 * MIB - PAGE, user, user + PAGE, user - PAGE):
        with pytest.raises(errors.IovaTaken):
            pf.usdm.remap(HERE * PAGE, iova & -PAGE, 2 * PAGE if iova == user - PAGE else PAGE)
    assert held(pf) == before
    pf.usdm.unmap(pf.virt + 6 * MIB - PAGE, PAGE)
    pf.usdm.remap(HERE * PAGE, user, PAGE)
    assert reaches(pf, user) == pf.virt


def test_usdm_gives_out_no_iova_of_an_entry(rig: Rig) -> None:
    """In a small space every unit is given out at last, but not those of entries."""
    small = FakeContainer(ranges=((0, 32 * MIB - 1),))
    fd = rig.vfio.open(small)
    rig.usdm.register_device(fd)
    rig.kernel.frames.give(rig.virt, list(range(HERE, HERE + 8)))
    rig.usdm.remap(HERE * PAGE, 6 * MIB + PAGE, PAGE)
    rig.usdm.remap((HERE + 1) * PAGE, 8 * MIB - PAGE, 2 * PAGE)
    places = []
    while True:
        try:
            places.append(rig.usdm.map(rig.virt + len(places) * PAGE, PAGE))
        except errors.NoIovaSpace:
            break
    assert sorted(places) == [unit * 2 * MIB for unit in range(1, 16) if unit not in (3, 4)]
    assert rig.usdm.statistics()["iova_free"] == 0
    rig.usdm.unremap(6 * MIB + PAGE, PAGE)
    assert rig.usdm.statistics()["iova_free"] == 0  # the other one is in that unit too
    rig.usdm.unremap(8 * MIB - PAGE, 2 * PAGE)
    assert rig.usdm.statistics()["iova_free"] == 4 * MIB
    got = rig.usdm.virt_to_phys(rig.usdm.allocate(4 * MIB))
    assert got == 6 * MIB


def test_unmap_takes_whole_entries(pf: Rig) -> None:
    pf.usdm.remap(HERE * PAGE, 0x900000, 2 * PAGE)
    pf.usdm.remap((HERE + 8) * PAGE, 0x902000, PAGE)
    pf.usdm.remap((HERE + 9) * PAGE, 0x904000, PAGE)
    before = held(pf)
    cases = [
        (0x900000, PAGE, "PartOfEntry"),
        (0x901000, PAGE, "PartOfEntry"),
        (0x901000, 2 * PAGE, "PartOfEntry"),
        (0x8FF000, PAGE, "NotRemapped"),
        (0x8FF000, 3 * PAGE, "NotRemapped"),
        (0x903000, PAGE, "NotRemapped"),
        (0x900000, 4 * PAGE, "NotRemapped"),
        (0x902000, 3 * PAGE, "NotRemapped"),
        (0x904000, 2 * PAGE, "NotRemapped"),
        (0x900000, 0, "BadSize"),
        (0x900001, PAGE, "NotAligned"),
        (0x900000, PAGE + 1, "NotAligned"),
        (MAX_U64 + 1 - PAGE, 2 * PAGE, "RangeOverflow"),
        (-1, PAGE, "BadArgument"),
    ]
    for iova, size, kind in cases:
        with pytest.raises(errors.UsdmError) as caught:
            pf.usdm.unremap(iova, size)
        assert type(caught.value).__name__ == kind, (hex(iova), size)
        assert held(pf) == before
    pf.usdm.unremap(0x900000, 3 * PAGE)
    assert [one["iova"] for one in pf.usdm.remappings()] == [0x904000]
    with pytest.raises(errors.NotRemapped):
        pf.usdm.unremap(0x900000, 3 * PAGE)


def test_unmap_cannot_reach_what_usdm_has_mapped(pf: Rig) -> None:
    iova = pf.usdm.map(pf.virt, PAGE)
    before = held(pf)
    with pytest.raises(errors.NotRemapped):
        pf.usdm.unremap(iova, PAGE)
    assert held(pf) == before


def test_a_page_that_moves_before_it_is_pinned(pf: Rig) -> None:
    before = held(pf)
    frames = pf.kernel.frames

    def move(reads: int) -> None:
        if pf.vfio.of(pf.fd).entries:
            frames.frames[pf.virt // PAGE + 2] = 0x7777

    frames.before = move
    with pytest.raises(errors.PageMoved, match="now at 0x7777000"):
        pf.usdm.remap(HERE * PAGE, 0x900000, 4 * PAGE)
    frames.before = lambda reads: None
    assert held(pf) == before


def test_frame_numbers_that_the_process_may_not_see(pf: Rig) -> None:
    before = held(pf)
    pf.kernel.frames.hidden = True
    with pytest.raises(errors.PhysicalAddressHidden, match="CAP_SYS_ADMIN"):
        pf.usdm.remap(HERE * PAGE, HERE * PAGE, PAGE)
    pf.kernel.frames.hidden = False
    for name in ("pagemap", "maps"):
        pf.kernel.fail(name, errno.EACCES)
        with pytest.raises(errors.PhysicalAddressHidden, match="Permission denied"):
            pf.usdm.remap(HERE * PAGE, HERE * PAGE, PAGE)
    assert held(pf) == before


# ---- contexts


def test_contexts(rig: Rig) -> None:
    assert rig.usdm.context() == "unregistered"
    for call in (lambda: rig.usdm.remap(PAGE, PAGE, PAGE), lambda: rig.usdm.unremap(PAGE, PAGE)):
        with pytest.raises(errors.NotRegistered, match="dmar0"):
            call()
    rig.kernel.iommus = []
    assert rig.usdm.context() == "no_iommu"
    rig.usdm.remap(1, 2, 3)  # nothing is looked at, nothing happens
    rig.usdm.unremap(4, 0)
    with pytest.raises(errors.BadArgument):
        rig.usdm.remap(1, 2, -3)
    no_iommu = rig.vfio.open(FakeContainer("noiommu"))
    rig.kernel.iommus = ["dmar0"]
    rig.usdm.register_device(no_iommu)  # the device at hand has none, whatever the machine has
    assert rig.usdm.context() == "no_iommu"
    rig.usdm.remap(1, 2, 3)
    assert rig.usdm.remappings() == []
    rig.usdm.unregister_device(no_iommu)
    rig.kernel.iommus = []
    rig.usdm.register_device(rig.fd)
    assert rig.usdm.context() == "domain0"
    assert [call for call in rig.vfio.calls if call[0] == "map"] == []


def test_whether_there_is_an_iommu_cannot_be_told(rig: Rig) -> None:
    rig.kernel.fail("names", errno.EACCES)
    with pytest.raises(errors.NotRegistered, match="Permission denied"):
        rig.usdm.remap(PAGE, PAGE, PAGE)


def test_thread_specific_mode_has_entries(rig: Rig) -> None:
    other = Rig(FaultyKernel(rig.vfio), thread_specific=True)
    other.usdm.register_device(other.fd)
    other.kernel.frames.give(other.virt, [HERE])
    other.usdm.remap(HERE * PAGE, HERE * PAGE, PAGE)
    assert reaches(other, HERE * PAGE) == other.virt


# ---- how entries end


@pytest.mark.parametrize("call", ["unregister", "close"])
def test_the_last_unregistration_ends_entries(pf: Rig, call: str) -> None:
    free = pf.usdm.statistics()["iova_free"]
    pf.usdm.register_device(pf.fd)
    pf.usdm.remap(HERE * PAGE, 0x900000, 4 * PAGE)
    pf.usdm.unregister_device(pf.fd)
    assert reaches(pf, 0x900000) == pf.virt
    if call == "close":
        pf.usdm.close()
    else:
        pf.usdm.unregister_device(pf.fd)
    assert pf.vfio.of(pf.fd).entries == {}
    assert pf.usdm.remappings() == []
    assert pf.usdm.statistics()["iova_free"] == free
    pf.usdm.register_device(pf.fd)
    assert pf.vfio.of(pf.fd).entries == {}
    pf.usdm.remap(HERE * PAGE, 0x900000, PAGE)
    assert reaches(pf, 0x900000) == pf.virt
    assert reaches(pf, 0x901000) is None


def test_a_forked_child_has_no_entries(pf: Rig) -> None:
    pf.usdm.remap(HERE * PAGE, 0x900000, PAGE)
    pid = os.fork()
    if pid == 0:
        wrong = 0
        for call in (lambda: pf.usdm.remap(PAGE, PAGE, PAGE), lambda: pf.usdm.unremap(0x900000, PAGE), pf.usdm.context):
            try:
                call()
            except errors.ForkedChild:
                continue
            wrong += 1
        pf.usdm.at_fork()
        wrong += pf.usdm.remappings() != [] or pf.usdm.context() != "unregistered"
        os._exit(wrong)
    assert os.waitpid(pid, 0)[1] == 0
    assert reaches(pf, 0x900000) == pf.virt
    pf.usdm.unremap(0x900000, PAGE)


def test_threads(pf: Rig) -> None:
    """Threads map, translate nothing wrong, and leave nothing behind."""
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        try:
            iova, virt = 0x10000000 + number * 3 * PAGE, pf.virt + (2 + number % 2) * MIB + number * PAGE
            for _ in range(60):
                pf.usdm.remap((HERE + number) * PAGE, iova, PAGE)
                pf.usdm.map(virt, PAGE)
                assert reaches(pf, iova) == pf.virt + number * PAGE
                pf.usdm.unremap(iova, PAGE)
                pf.usdm.unmap(virt, PAGE)
        except BaseException as error:
            wrong.append(error)

    before = held(pf)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert held(pf) == before
