"""Every system call of icp_sal_iommu fails once, at every place, and while what it did is undone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from usdm_fake_vfio import FakeVfio
from usdm_faulty_kernel import FaultyKernel
from usdm_rig import MIB, PAGE, Rig

from usdm import errors

AT, IOVA, PIECES = 7000 * PAGE, 0x900000, 3
SIZE = 6 * PAGE


@pytest.fixture
def make() -> Iterator[Callable[[], Rig]]:
    made: list[Rig] = []

    def create() -> Rig:
        """Registered, with six frames at three places, and an entry beside them in the same 2 MiB."""
        rig = Rig(FaultyKernel(FakeVfio()))
        made.append(rig)
        rig.usdm.register_device(rig.fd)
        rig.kernel.frames.give(rig.virt, [7002, 7003, 7004, 9])
        rig.kernel.frames.give(rig.virt + MIB, [7000, 7001, 0, 7005])
        rig.usdm.remap(9 * PAGE, IOVA - PAGE, PAGE)
        return rig

    yield create
    for rig in made:
        rig.vfio.close()


def held(rig: Rig) -> tuple[object, ...]:
    stats = rig.usdm.statistics()
    return (*rig.held(), rig.usdm.remappings(), stats["container_mappings"])


def end(rig: Rig) -> None:
    rig.kernel.heal()
    rig.usdm.close()
    assert rig.vfio.of(rig.fd).entries == {}
    assert rig.usdm.statistics()["iova_free"] == (1 << 48) - 4 * MIB
    assert rig.usdm.remappings() == []


@pytest.mark.parametrize(
    ("name", "number", "right"),
    [
        ("ioctl", errno.ENOMEM, errors.LockedMemoryLimit),
        ("ioctl", errno.ENOSPC, errors.TooManyMappings),
        ("ioctl", errno.EEXIST, errors.MapFailed),
        ("pagemap", errno.EPERM, errors.PhysicalAddressHidden),
        ("maps", errno.EACCES, errors.PhysicalAddressHidden),
        ("any", errno.ENOMEM, errors.UsdmError),
    ],
)
def test_map(make: Callable[[], Rig], name: str, number: int, right: type[errors.UsdmError]) -> None:
    failed = 0
    for n in range(60):
        rig = make()
        before = held(rig)
        rig.kernel.fail(name, number, n)
        try:
            rig.usdm.remap(AT, IOVA, SIZE)
        except right:
            failed += 1
            rig.kernel.heal()
            assert held(rig) == before
            rig.usdm.remap(AT, IOVA, SIZE)
        else:
            assert rig.kernel.fault_is_due()
            end(rig)
            break
        assert len(rig.vfio.of(rig.fd).entries) == 1 + PIECES
        end(rig)
    # those of the lookup, one for each piece, those that look once more
    assert failed == {"ioctl": PIECES, "pagemap": 9, "maps": 2, "any": PIECES + 9 + 2}[name]


@pytest.mark.parametrize("call", ["map", "unmap"])
def test_map_that_cannot_be_undone(make: Callable[[], Rig], call: str) -> None:
    """The third piece fails, and so does the unmap of one of the others: its IOVA stays taken until it is gone."""
    for which in range(2):
        rig = make()
        before = held(rig)
        rig.kernel.fail("ioctl", errno.ENOSPC, 2)
        rig.kernel.fail("ioctl", errno.EINVAL, which)
        with pytest.raises(errors.TooManyMappings) as caught:
            rig.usdm.remap(AT, IOVA, SIZE)
        assert "left mapped" in caught.value.__notes__[0]
        left = [iova for iova in rig.vfio.of(rig.fd).entries if iova >= IOVA]
        assert left == [(IOVA, IOVA + 2 * PAGE)[which]]
        assert rig.usdm.statistics()["container_mappings"] == 2
        # what is left goes with the next call
        rig.usdm.remap(AT, IOVA, SIZE) if call == "map" else rig.usdm.unremap(IOVA - PAGE, PAGE)
        assert len(rig.vfio.of(rig.fd).entries) == (4 if call == "map" else 0)
        rig.usdm.unremap(IOVA, SIZE) if call == "map" else rig.usdm.remap(9 * PAGE, IOVA - PAGE, PAGE)
        assert held(rig) == before
        end(rig)


def test_what_is_left_ends_with_the_registration(make: Callable[[], Rig]) -> None:
    rig = make()
    rig.kernel.fail("ioctl", errno.ENOSPC, 2)
    for _ in range(2):
        rig.kernel.fail("ioctl", errno.EINVAL)
    with pytest.raises(errors.TooManyMappings):
        rig.usdm.remap(AT, IOVA, SIZE)
    for _ in range(2):
        rig.kernel.fail("ioctl", errno.EINVAL)  # and again with the next call, which works all the same
    rig.usdm.unremap(IOVA - PAGE, PAGE)
    assert len(rig.vfio.of(rig.fd).entries) == 2
    taken = rig.usdm.statistics()["iova_free"]
    assert taken == (1 << 48) - 6 * MIB
    rig.usdm.unregister_device(rig.fd)
    end(rig)


def test_unmap(make: Callable[[], Rig]) -> None:
    """A piece cannot be unmapped: those before it are mapped again."""
    for n in range(PIECES):
        rig = make()
        rig.usdm.remap(AT, IOVA, SIZE)
        before = held(rig)
        rig.kernel.fail("ioctl", errno.EINVAL, n)
        with pytest.raises(errors.UnmapFailed):
            rig.usdm.unremap(IOVA, SIZE)
        assert held(rig) == before
        rig.usdm.unremap(IOVA - PAGE, SIZE + PAGE)
        assert rig.vfio.of(rig.fd).entries == {}
        end(rig)


@pytest.mark.parametrize("how", ["refused", "moved"])
def test_unmap_that_cannot_be_undone(make: Callable[[], Rig], how: str) -> None:
    """Then the device loses the rest too; the entry can still be removed."""
    rig = make()
    rig.usdm.remap(AT, IOVA, SIZE)
    rig.kernel.fail("ioctl", errno.EINVAL, 2)
    if how == "refused":
        rig.kernel.fail("ioctl", errno.ENOMEM, 1)
    else:
        rig.kernel.frames.frames[rig.virt // PAGE + 1] = 4711
    with pytest.raises(errors.UnmapFailed) as caught:
        rig.usdm.unremap(IOVA, SIZE)
    assert "the rest of the range was unmapped" in caught.value.__notes__[0]
    assert sorted(rig.vfio.of(rig.fd).entries) == [IOVA - PAGE, IOVA + 5 * PAGE]
    assert rig.usdm.remappings()[1]["pieces"] == 1
    with pytest.raises(errors.IovaTaken):
        rig.usdm.remap(9 * PAGE, IOVA, PAGE)
    rig.usdm.unremap(IOVA, SIZE)
    assert sorted(rig.vfio.of(rig.fd).entries) == [IOVA - PAGE]
    end(rig)


def test_somebody_unmapped_it_beside_usdm(make: Callable[[], Rig]) -> None:
    rig = make()
    rig.usdm.remap(AT, IOVA, SIZE)
    del rig.vfio.of(rig.fd).entries[IOVA]
    with pytest.raises(errors.UnmapFailed, match="0x2000 of 0x6000 bytes") as caught:
        rig.usdm.unremap(IOVA, SIZE)
    assert caught.value.errno == errno.ENOENT
    assert [one["iova"] for one in rig.usdm.remappings()] == [IOVA - PAGE]
    rig.usdm.remap(AT, IOVA, SIZE)
    end(rig)


def test_somebody_maps_there_beside_usdm(make: Callable[[], Rig]) -> None:
    rig = make()
    before = held(rig)
    container = rig.vfio.of(rig.fd)
    container.entries[IOVA + 5 * PAGE] = (rig.virt, PAGE)
    with pytest.raises(errors.MapFailed) as caught:
        rig.usdm.remap(AT, IOVA, SIZE)
    assert caught.value.errno == errno.EEXIST
    del container.entries[IOVA + 5 * PAGE]
    assert held(rig) == before


def test_everything_ends_whatever_fails(make: Callable[[], Rig]) -> None:
    for n in range(1 + PIECES):
        rig = make()
        rig.usdm.remap(AT, IOVA, SIZE)
        rig.kernel.fail("ioctl", errno.EINVAL, n)
        with pytest.raises(errors.UnmapFailed):
            rig.usdm.unregister_device(rig.fd)
        assert len(rig.vfio.of(rig.fd).entries) == 1  # the kernel's, who refused
        rig.vfio.of(rig.fd).entries.clear()
        assert rig.usdm.statistics()["iova_free"] == (1 << 48) - 4 * MIB
        rig.usdm.register_device(rig.fd)
        rig.usdm.remap(AT, IOVA, SIZE)
        end(rig)
