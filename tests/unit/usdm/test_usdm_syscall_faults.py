"""Every system call fails once, at every place: the right error, nothing leaked, and the next call works."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest
from usdm_fake_vfio import Factory, FakeVfio, descriptors
from usdm_faulty_kernel import FaultyKernel
from usdm_rig import KIB, MIB, PAGE, Rig

from usdm import errors


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def create(pool: int = 0, nodes: str = "0", **settings: int) -> Rig:
        made.append(Rig(FaultyKernel(FakeVfio(), pool, nodes), **settings))  # type: ignore[arg-type]
        return made[-1]

    yield create
    for rig in made:
        rig.vfio.close()


Act = Callable[[Rig], object]


def small(rig: Rig) -> None:
    rig.usdm.allocate(5 * KIB)


def large(rig: Rig) -> None:
    rig.usdm.allocate(3 * MIB, -1, 4 * MIB)


def on_node(rig: Rig) -> None:
    rig.usdm.allocate(5 * KIB, 1)


def large_on_node(rig: Rig) -> None:
    rig.usdm.allocate(3 * MIB, 1)


def map_user(rig: Rig) -> None:
    rig.usdm.map(rig.virt, 2 * MIB)


def register(rig: Rig) -> None:
    rig.usdm.register_device(rig.fd)


def registered(rig: Rig) -> None:
    register(rig)


def with_slabs(rig: Rig) -> None:
    """Slabs and a large allocation before the registration."""
    for _ in range(3):
        rig.usdm.allocate(2 * MIB - 1)
    rig.usdm.allocate(3 * MIB)


def registered_with_all(rig: Rig) -> None:
    with_slabs(rig)
    register(rig)
    map_user(rig)


Class = type[errors.UsdmError]
NO = errors.NoMemory
ALLOCATE = [
    # what happens, before it, pool of hugepages, what fails with which number, which errors are right
    (small, registered, 0, {"mmap": (12, NO), "madvise": (22, NO), "ioctl": (12, errors.LockedMemoryLimit)}),
    (large, registered, 0, {"mmap": (12, NO), "madvise": (22, NO), "ioctl": (28, errors.TooManyMappings)}),
    (
        small,
        registered,
        8,
        {
            "mmap": (12, errors.HugepagesExhausted),
            "madvise": (14, (errors.HugepagesExhausted, NO)),
            "ioctl": (22, errors.MapFailed),
        },
    ),
    (
        large,
        registered,
        8,
        {
            "mmap": (12, errors.HugepagesExhausted),
            "madvise": (14, (errors.HugepagesExhausted, NO)),
            "ioctl": (28, errors.TooManyMappings),
        },
    ),
    (
        on_node,
        registered,
        0,
        {
            "mmap": (12, NO),
            "madvise": (12, NO),
            "mbind": (1, NO),
            "move_pages": (1, NO),
            "ioctl": (12, errors.LockedMemoryLimit),
            "read_text": (13, errors.NoSuchNode),
        },
    ),
    (
        large_on_node,
        registered,
        8,
        {
            "mmap": (12, errors.HugepagesExhausted),
            "madvise": (14, (errors.HugepagesExhausted, NO)),
            "mbind": (1, NO),
            "move_pages": (1, errors.HugepagesExhausted),
        },
    ),
    (map_user, registered, 0, {"ioctl": (14, errors.MapFailed)}),
    (map_user, registered, 8, {"ioctl": (12, errors.LockedMemoryLimit)}),
]
CASES = [
    pytest.param(act, before, pool, name, number, right, id=f"{act.__name__}-{'2M' if pool else '4K'}-{name}")
    for act, before, pool, faults in ALLOCATE
    for name, (number, right) in faults.items()
]


@pytest.mark.parametrize(("act", "before", "pool", "name", "number", "right"), CASES)
def test_what_takes(
    make: Callable[..., Rig], act: Act, before: Act, pool: int, name: str, number: int, right: Class | tuple[Class, ...]
) -> None:
    failed = 0
    for n in range(100):
        rig = make(pool, "0-1", hugepages=pool)
        before(rig)
        held = rig.held()
        rig.kernel.fail(name, number, n)
        try:
            act(rig)
        except right:
            failed += 1
            rig.kernel.heal()
            assert rig.held() == held
        else:
            assert rig.kernel.fault_is_due(), f"{name} number {n} failed, and nobody said so"
            rig.end()
            break
        rig.consistent()
        act(rig)
        rig.consistent()
        rig.end()
    assert failed > 0


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOSPC, errno.EINVAL, errno.EBADF])
@pytest.mark.parametrize("pool", [0, 16], ids=["4K", "2M"])
def test_register_with_memory_before(make: Callable[..., Rig], pool: int, number: int) -> None:
    """Every ioctl fails once: those that validate, each mapping. R1: nothing stays mapped."""
    reached = 0
    for n in range(100):
        rig = make(pool, hugepages=pool)
        with_slabs(rig)
        held = rig.held()
        rig.kernel.fail("ioctl", number, n)
        try:
            register(rig)
        except (errors.NotAContainer, errors.MapFailed):
            reached += 1
            rig.kernel.heal()
        else:
            assert rig.kernel.fault_is_due()
            break
        assert rig.held() == held
        rig.consistent()
        register(rig)
        rig.consistent()
        rig.end()
    assert reached == 3 + 4


@pytest.mark.parametrize("name", ["duplicate", "close", "same_file"])
def test_descriptors(make: Callable[..., Rig], name: str) -> None:
    rig = make()
    with_slabs(rig)
    before = descriptors()
    rig.kernel.fail(name, errno.EIO)
    if name == "duplicate":
        with pytest.raises(errors.NotAContainer):
            register(rig)
        assert descriptors() == before
    register(rig)
    rig.consistent()
    register(rig)  # same_file fails: the number tells
    rig.usdm.unregister_device(rig.fd)
    rig.usdm.unregister_device(rig.fd)  # close fails, the descriptor is gone
    assert not rig.kernel.fault_is_due()
    assert not rig.usdm.registered
    assert descriptors() == before
    rig.consistent()
    rig.end()


def test_a_close_that_fails_hides_no_other_error(make: Callable[..., Rig]) -> None:
    rig = make()
    with_slabs(rig)
    before = descriptors()
    rig.kernel.fail("ioctl", errno.ENOMEM, 3)
    rig.kernel.fail("close", errno.EIO)
    with pytest.raises(errors.LockedMemoryLimit):
        register(rig)
    assert descriptors() == before
    rig.end()


@pytest.mark.parametrize("thread_specific", [False, True])
@pytest.mark.parametrize("pool", [0, 16], ids=["4K", "2M"])
@pytest.mark.parametrize("name", ["munmap", "ioctl"])
def test_free(make: Callable[..., Rig], name: str, pool: int, thread_specific: bool) -> None:
    """A slab or a large allocation that cannot be given back is kept, and given back later."""
    for n in range(100):
        rig = make(pool, hugepages=pool, thread_specific=thread_specific)
        register(rig)
        blocks = [rig.usdm.allocate(2 * MIB - 1) for _ in range(6)] + [rig.usdm.allocate(3 * MIB)]
        rig.kernel.fail(name, errno.EINVAL, n)
        for address in blocks:
            try:
                rig.usdm.free(address)
            except errors.UnmapFailed:
                assert name == "ioctl"
                assert address == blocks[-1]
                assert rig.usdm.phys_to_virt(rig.usdm.virt_to_phys(address)) == address
                rig.usdm.free(address)
            with pytest.raises(errors.DoubleFree):
                rig.usdm.free(address)
            with pytest.raises(errors.NotMapped):
                rig.usdm.virt_to_phys(address)
            rig.consistent()
        done = rig.kernel.fault_is_due()
        rig.kernel.heal()
        assert rig.usdm.statistics()["allocations"] == 0
        again = rig.usdm.allocate(KIB)
        rig.consistent()
        rig.usdm.free(again)
        rig.end()
        if done:
            break
    assert n > 0


def test_unmap(make: Callable[..., Rig]) -> None:
    rig = make()
    registered_with_all(rig)
    held = rig.held()
    rig.kernel.fail("ioctl", errno.EINVAL)
    with pytest.raises(errors.UnmapFailed):
        rig.usdm.unmap(rig.virt, 2 * MIB)
    assert rig.held() == held
    rig.usdm.unmap(rig.virt, 2 * MIB)
    rig.consistent()
    map_user(rig)
    rig.end()


@pytest.mark.parametrize("call", ["unregister", "close"])
def test_everything_ends_whatever_fails(make: Callable[..., Rig], call: str) -> None:
    before = descriptors()
    for n in range(20):
        rig = make()
        registered_with_all(rig)
        rig.kernel.fail("ioctl", errno.EINVAL, n)
        end = rig.usdm.close if call == "close" else lambda rig=rig: rig.usdm.unregister_device(rig.fd)
        if n < 5:
            with pytest.raises(errors.UnmapFailed):
                end()
            assert len(rig.vfio.of(rig.fd).entries) == 1  # the kernel's, who refused
            rig.vfio.of(rig.fd).entries.clear()
        else:
            end()
            assert rig.kernel.fault_is_due()
            rig.kernel.heal()
        assert not rig.usdm.registered
        with pytest.raises(errors.NotMapped):
            rig.usdm.virt_to_phys(rig.virt)
        rig.usdm.register_device(rig.fd)
        map_user(rig)
        rig.consistent()
        rig.end()
        rig.vfio.close()
    assert descriptors() == before


def test_close_with_memory_that_the_kernel_does_not_take(make: Callable[..., Rig]) -> None:
    for n in range(5):
        rig = make()
        registered_with_all(rig)
        rig.kernel.fail("munmap", errno.ENOMEM, n)
        rig.usdm.close()
        assert rig.usdm.statistics()["pages_left"] == 0  # tried again at the end
        rig.end()


def test_a_slab_that_is_not_at_2_mib_by_itself(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system call of the way round fails once."""
    real = FaultyKernel.mmap

    def off(kernel: FaultyKernel, size: int, flags: int = 0) -> int:
        address = real(kernel, size, flags)
        if address % (2 * MIB) == 0 and size == 2 * MIB:
            kernel.memory.pop(address)
            super(FaultyKernel, kernel).munmap(address, size)
            whole = super(FaultyKernel, kernel).mmap(3 * size)
            address = -(-whole // size) * size + PAGE
            super(FaultyKernel, kernel).munmap(whole, address - whole)
            super(FaultyKernel, kernel).munmap(address + size, whole + 2 * size - address)
            kernel.memory[address] = size
        return address

    monkeypatch.setattr(FaultyKernel, "mmap", off)
    for name, n in [("mmap", 0), ("mmap", 1), ("munmap", 0), ("munmap", 1), ("munmap", 2), ("madvise", 0), ("mmap", 9)]:
        rig = make()
        register(rig)
        rig.kernel.fail(name, errno.ENOMEM, n)
        if name != "munmap" and n < 2:
            with pytest.raises(errors.NoMemory):
                rig.usdm.allocate(KIB)
        assert rig.usdm.virt_to_phys(rig.usdm.allocate(KIB, -1, MIB)) % MIB == 0
        assert int(rig.usdm.maps()[0]["virt"]) % (2 * MIB) == 0
        rig.consistent()
        rig.end()


@pytest.mark.parametrize("pool", [0, 8], ids=["4K", "2M"])
def test_the_kernel_refuses_everything_for_a_while(make: Callable[..., Rig], pool: int, buffer: Factory) -> None:
    rig = make(pool, "0-1", hugepages=pool)
    registered_with_all(rig)
    calls: list[Callable[[], object]] = [
        lambda: rig.usdm.allocate(2 * MIB - 1),
        lambda: rig.usdm.allocate(4 * MIB),
        lambda: rig.usdm.allocate(KIB, 1),
        lambda: rig.usdm.map(rig.virt + 2 * MIB, 2 * MIB),
        lambda: rig.usdm.unmap(rig.virt, 2 * MIB),
        lambda: rig.usdm.register_device(rig.fd + 1000),
    ]
    held = rig.held()
    for call in calls:
        for _ in range(10):
            rig.kernel.heal()
            for _ in range(30):
                rig.kernel.fail("any", errno.ENOMEM)
            with pytest.raises(errors.UsdmError):
                call()
            rig.kernel.heal()
    rig.usdm.free(rig.usdm.allocate(3 * MIB))  # what could not be given back is now
    assert rig.held() == held
    rig.consistent()
    rig.end()
