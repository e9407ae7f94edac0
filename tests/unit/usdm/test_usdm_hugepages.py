from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from usdm_fake_vfio import FakeVfio, descriptors
from usdm_faulty_kernel import FaultyKernel
from usdm_rig import KIB, MIB, PAGE, Rig

from usdm import errors
from usdm.driver import Usdm
from usdm.kernel import Kernel

HUGEPAGE = 2 * MIB


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def create(pool: int, quota: int) -> Rig:
        made.append(Rig(FaultyKernel(FakeVfio(), pool), quota))
        return made[-1]

    yield create
    for rig in made:
        rig.vfio.close()


def test_slabs_and_large_allocations_are_hugepages(make: Callable[..., Rig]) -> None:
    rig = make(10, 5)
    rig.usdm.register_device(rig.fd)
    before = descriptors()
    mask = os.umask(0o022)
    small = [rig.usdm.allocate(KIB) for _ in range(100)]
    large = rig.usdm.allocate(2 * MIB + 1)
    assert rig.kernel.taken == 3
    assert os.umask(mask) == 0o022  # no file, so nobody changed it (H1)
    assert descriptors() == before
    assert [(one["kind"], one["size"]) for one in rig.usdm.maps()].count(("large", 4 * MIB)) == 1
    assert large % HUGEPAGE == 0
    assert "madvise" in rig.kernel.calls
    assert rig.usdm.statistics()["mode"] == "2M"
    assert (rig.usdm.statistics()["hugepages_used"], rig.usdm.statistics()["hugepages_quota"]) == (3, 5)
    for address in [*small, large]:
        assert rig.usdm.phys_to_virt(rig.usdm.virt_to_phys(address)) == address
        rig.usdm.free(address)
    rig.consistent()
    rig.end()


@pytest.mark.parametrize("quota", [1, 65536])
def test_h1_every_call_fails_while_there_are_no_hugepages(make: Callable[..., Rig], quota: int) -> None:
    rig = make(0, quota)
    for _ in range(3):
        for call in (
            lambda: rig.usdm.allocate(KIB),
            lambda: rig.usdm.allocate(3 * MIB),
            lambda: rig.usdm.register_device(rig.fd),
            rig.usdm.prepare,
        ):
            with pytest.raises(errors.HugepagesNotConfigured, match="No such file"):
                call()
    assert not rig.usdm.registered
    assert "mmap" not in rig.kernel.calls
    rig.kernel.hugepages = 4
    assert rig.usdm.allocate(KIB)
    rig.usdm.register_device(rig.fd)


def test_a_pool_of_size_zero(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make(0, 4)
    for text, match in (("0", "nr_hugepages is 0"), ("many", "invalid literal")):
        monkeypatch.setattr(FaultyKernel, "read_text", lambda self, path, text=text: text)
        for _ in range(2):
            with pytest.raises(errors.HugepagesNotConfigured, match=match):
                rig.usdm.allocate(KIB)


def test_the_quota_of_the_process(make: Callable[..., Rig]) -> None:
    rig = make(100, 4)
    held = [rig.usdm.allocate(2 * MIB - 1) for _ in range(2)] + [rig.usdm.allocate(4 * MIB)]
    for size in (2 * MIB - 1, 2 * MIB, 64 * MIB):
        with pytest.raises(errors.HugepageQuota, match="4 of 4 held"):
            rig.usdm.allocate(size)
    assert rig.kernel.taken == 4
    for address in held:
        rig.usdm.free(address)
    # The two empty slabs that were kept make room.
    assert rig.usdm.allocate(8 * MIB)
    assert rig.kernel.taken == 4


def test_other_processes_have_the_hugepages(make: Callable[..., Rig]) -> None:
    rig = make(3, 10)
    rig.usdm.register_device(rig.fd)
    first = rig.usdm.allocate(KIB)
    rig.kernel.taken += 2
    held = rig.held()
    for size in (2 * MIB - 1, 2 * MIB):
        with pytest.raises(errors.HugepagesExhausted, match="0 of 3 free, this process has 1"):
            rig.usdm.allocate(size)
    assert rig.held() == held
    assert rig.usdm.allocate(KIB, -1, 1) == first + KIB  # the slab still has room
    rig.kernel.taken -= 2
    assert rig.usdm.allocate(2 * MIB)


def test_a_pool_that_runs_empty_is_an_error_and_no_signal(make: Callable[..., Rig]) -> None:
    rig = make(8, 8)
    rig.kernel.fail("madvise", 14, 1)  # EFAULT of MADV_POPULATE_WRITE: the access would raise SIGBUS
    with pytest.raises(errors.HugepagesExhausted):
        rig.usdm.allocate(KIB)
    assert rig.kernel.memory == {}
    rig.end()


@pytest.mark.parametrize("name", ["map", "unmap"])
def test_user_mappings_are_of_2_mib(make: Callable[..., Rig], name: str) -> None:
    """The order is NULL, size 0 or too large, address, size, then what the state says."""
    rig = make(8, 8)
    call = getattr(rig.usdm, name)
    cases = [
        (0, 0, "NullAddress", "virt"),
        (PAGE, 0, "BadSize", "size"),
        (PAGE, 2048 * MIB + 1, "TooLarge", "size"),
        (rig.virt + PAGE, PAGE, "NotAligned", "virt"),
        (rig.virt, PAGE, "NotAligned", "size"),
        (rig.virt, 3 * MIB, "NotAligned", "size"),
        (rig.virt, 2 * MIB, "NotRegistered" if name == "map" else "NotMapped", "virt"),
    ]
    for virt, size, kind, argument in cases:
        with pytest.raises(errors.UsdmError) as caught:
            call(virt, size)
        assert (type(caught.value).__name__, caught.value.argument) == (kind, argument)
    rig.usdm.register_device(rig.fd)
    for virt, size, kind, _ in cases[:-1]:
        with pytest.raises(errors.UsdmError) as caught:
            call(virt, size)
        assert type(caught.value).__name__ == kind
    iova = rig.usdm.map(rig.virt, 2 * MIB)
    assert rig.usdm.virt_to_phys(rig.virt + 2 * MIB - 1) == iova + 2 * MIB - 1
    rig.usdm.unmap(rig.virt, 2 * MIB)
    rig.consistent()
    rig.end()


def test_an_earlier_mapping_of_4_kib_is_not_possible_before_the_mode_is_known(make: Callable[..., Rig]) -> None:
    rig = make(8, 8)
    with pytest.raises(errors.NotAligned):
        rig.usdm.map(rig.virt + PAGE, PAGE)


def test_a_quota_is_checked() -> None:
    for bad in (-1, 65537, True, 1.0, "1"):
        with pytest.raises(errors.BadArgument):
            Usdm(hugepages=bad)  # type: ignore[arg-type]


def test_the_kernels_own_refusal() -> None:
    """On a machine without hugepages the real calls say so."""
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    if os.path.exists(pool) and Kernel().read_text(pool) != "0":  # noqa: PTH110
        pytest.skip("the machine has hugepages")
    usdm = Usdm(hugepages=1)
    for _ in range(2):
        with pytest.raises(errors.HugepagesNotConfigured):
            usdm.allocate(KIB)
