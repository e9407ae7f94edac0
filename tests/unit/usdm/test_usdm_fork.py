from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import pytest
from usdm_fake_vfio import Factory, FakeVfio, descriptors, is_mapped
from usdm_faulty_kernel import FaultyKernel

from usdm import errors, fork
from usdm.driver import Usdm

PAGE = 4096


def in_child(check: Callable[[], bool]) -> bool:
    """Run `check` in a forked child and return its answer; no answer is False."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: a runner's
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except errors.ForkedChild:
        return True
    return False


def test_f1_a_child_cannot_touch_the_parents_container(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    virt, second = buffer(PAGE).address, buffer(PAGE).address
    usdm.map(virt, PAGE)
    address = usdm.allocate(PAGE)
    iova = usdm.virt_to_phys(address)

    def child() -> bool:
        before = list(vfio.calls)
        calls: list[Callable[[], object]] = [
            lambda: usdm.map(second, PAGE),
            lambda: usdm.unmap(virt, PAGE),
            lambda: usdm.allocate(PAGE),
            lambda: usdm.allocate(4 << 20),
            lambda: usdm.free(address),
            lambda: usdm.virt_to_phys(address),
            lambda: usdm.phys_to_virt(iova),
            lambda: usdm.register_device(fd),
            lambda: usdm.unregister_device(fd),
            lambda: usdm.close(),
        ]
        return all(refused(call) for call in calls) and vfio.calls == before

    assert in_child(child)
    assert usdm.map(second, PAGE)
    assert usdm.virt_to_phys(address) == iova


def test_f2_a_lock_that_was_held_at_the_fork_hangs_nobody(usdm: Usdm, fd: int) -> None:
    with usdm._lock:
        assert in_child(lambda: refused(lambda: usdm.allocate(PAGE)))


def test_an_unused_state_with_a_held_lock_is_not_adopted(usdm: Usdm) -> None:
    with usdm._lock:
        assert in_child(lambda: refused(lambda: usdm.allocate(PAGE)))


def test_a_child_of_a_parent_that_never_used_it(usdm: Usdm, vfio: FakeVfio, buffer: Factory) -> None:
    fd, virt = vfio.open(), buffer(PAGE).address

    def child() -> bool:
        usdm.register_device(fd)
        return usdm.map(virt, PAGE) == 0x200000 and usdm.allocate(PAGE) != 0

    assert in_child(child)
    assert not usdm.registered


def test_allocated_memory_is_not_inherited(usdm: Usdm) -> None:
    for size in (PAGE, 4 << 20):
        address = usdm.allocate(size)
        assert is_mapped(address, size, write=True)
        assert in_child(lambda start=address: not is_mapped(start, PAGE, write=False))


def test_plain_memory_is(usdm: Usdm) -> None:
    address = usdm.allocate_plain(PAGE)

    def child() -> bool:
        usdm.free_plain(address)
        return bool(usdm.allocate_plain(PAGE))

    assert in_child(child)
    usdm.free_plain(address)


def test_at_fork_gives_the_child_a_state_of_its_own(usdm: Usdm, vfio: FakeVfio, fd: int, buffer: Factory) -> None:
    virt, second = buffer(PAGE).address, buffer(PAGE).address
    parents = usdm.map(virt, PAGE)
    address = usdm.allocate(PAGE)
    iova, entries = usdm.virt_to_phys(address), dict(vfio.of(fd).entries)
    inherited = len(descriptors())

    def child() -> bool:
        usdm.at_fork()
        own = len(descriptors()) == inherited - 1  # USDM's copy of the parent's container
        clean = not usdm.registered and usdm.iova_ranges == () and usdm.maps() == []
        for call in (lambda: usdm.virt_to_phys(address), lambda: usdm.phys_to_virt(iova)):
            with pytest.raises(errors.NotMapped):
                call()
        with pytest.raises(errors.NotAllocated):
            usdm.free(address)
        with pytest.raises(errors.NotRegistered):
            usdm.map(second, PAGE)
        container = vfio.open()
        usdm.register_device(container)
        mapped = usdm.map(second, PAGE) == 0x200000 and vfio.of(container).device_view(0x200000) == second
        works = usdm.virt_to_phys(usdm.allocate(PAGE)) == 0x400000
        usdm.at_fork()  # nothing more
        return own and clean and mapped and works and usdm.registered and vfio.of(fd).entries == entries

    assert in_child(child)
    assert vfio.of(fd).entries == entries
    assert usdm.virt_to_phys(virt) == parents
    usdm.at_fork()
    assert usdm.registered
    usdm.unmap(virt, PAGE)
    usdm.free(address)


def test_a_lock_that_was_held_at_the_fork_hangs_no_at_fork(usdm: Usdm, fd: int) -> None:
    def child() -> bool:
        usdm.at_fork()
        return usdm.allocate(PAGE) != 0

    with usdm._lock:
        assert in_child(child)


def test_a_close_that_fails_in_at_fork(vfio: FakeVfio) -> None:
    kernel = FaultyKernel(vfio)
    usdm = Usdm(kernel=kernel)
    usdm.register_device(vfio.open())

    def child() -> bool:
        kernel.fail("close", 5)
        usdm.at_fork()
        usdm.register_device(vfio.open())
        return usdm.registered and not kernel.fault_is_due()

    assert in_child(child)


def test_a_childs_child_is_refused_too(usdm: Usdm, fd: int) -> None:
    def parents_state() -> bool:
        return in_child(lambda: refused(lambda: usdm.allocate(PAGE)))

    def own_state() -> bool:
        usdm.at_fork()
        usdm.allocate(PAGE)

        def grandchild() -> bool:
            before = refused(usdm.maps)
            usdm.at_fork()
            return before and usdm.maps() == []

        return in_child(grandchild)

    assert in_child(parents_state)
    assert in_child(own_state)


def test_the_short_ways_are_closed_in_a_child(usdm: Usdm, fd: int, buffer: Factory) -> None:
    """Blocks that wait for an equal request are the parent's too."""
    used = usdm.allocate(PAGE)
    usdm.free(usdm.allocate(PAGE))
    virt = buffer(2 * PAGE).address
    usdm.map(virt, PAGE)
    usdm.map(virt + PAGE, PAGE)

    def child() -> bool:
        calls: list[Callable[[], object]] = [
            lambda: usdm.allocate(PAGE),
            lambda: usdm.free(used),
            lambda: usdm.virt_to_phys(virt),
            lambda: usdm.statistics(),
            lambda: usdm.maps(),
            lambda: usdm.prepare(),
        ]
        return all(refused(call) for call in calls)

    assert in_child(child)


def test_a_state_that_is_gone_is_not_watched(vfio: FakeVfio) -> None:
    before = len(fork._states)
    usdm = Usdm(vfio.ioctl)
    assert len(fork._states) == before + 1
    del usdm
    assert len(fork._states) == before


def test_the_error_names_both_processes(usdm: Usdm, fd: int) -> None:
    parent = os.getpid()

    def child() -> bool:
        with pytest.raises(errors.ForkedChild) as caught:
            usdm.allocate(PAGE)
        return caught.value.value == os.getpid() and str(parent) in str(caught.value)

    assert in_child(child)
