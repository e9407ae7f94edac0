from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from usdm_fake_vfio import Factory, FakeContainer, FakeVfio

from usdm import errors
from usdm.driver import Usdm

PAGE, MIB = 4096, 1 << 20
THREADS, ROUNDS = 8, 150


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run(work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def body(n: int) -> None:
        try:
            work(n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=body, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_map_and_unmap(usdm: Usdm, vfio: FakeVfio, buffer: Factory) -> None:
    fd = vfio.open(FakeContainer(ranges=((0, 0xFEDFFFFF), (0xFEF00000, (1 << 33) - 1))))
    usdm.register_device(fd)
    area = buffer(THREADS * PAGE).address

    def work(n: int) -> None:
        virt = area + n * PAGE
        for _ in range(ROUNDS):
            iova = usdm.map(virt, PAGE)
            assert usdm.virt_to_phys(virt) == iova
            assert usdm.phys_to_virt(iova) == virt
            usdm.unmap(virt, PAGE)

    run(work)
    assert vfio.of(fd).entries == {}


def test_one_of_many_maps_the_same_range(usdm: Usdm, fd: int, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    won = []

    def work(n: int) -> None:
        with contextlib.suppress(errors.AlreadyMapped):
            won.append(usdm.map(virt, PAGE))

    run(work)
    assert won == [usdm.virt_to_phys(virt)]


def test_allocate_and_free(usdm: Usdm, vfio: FakeVfio, fd: int) -> None:
    def work(n: int) -> None:
        for turn in range(ROUNDS):
            size = (1, 5000, 600_000, 2 * MIB + 5)[(n + turn) % 4]
            address = usdm.allocate(size, -1, 1 << (turn % 23))
            ctypes.memset(address, n + 1, size)
            assert ctypes.string_at(address + size - 1, 1) == bytes([n + 1])
            usdm.free(address)

    run(work)
    assert len(usdm._space.regions) <= 4


def test_t1_registration_beside_allocation(usdm: Usdm, vfio: FakeVfio) -> None:
    fd = vfio.open()
    usdm.allocate(PAGE)

    def work(n: int) -> None:
        for _ in range(ROUNDS):
            if n % 2:
                usdm.register_device(fd)
                usdm.unregister_device(fd)
            else:
                usdm.free(usdm.allocate(3 * MIB))

    run(work)
    assert not usdm.registered
    assert vfio.of(fd).entries == {}


def test_one_of_many_frees(usdm: Usdm, fd: int) -> None:
    address = usdm.allocate(PAGE)
    freed = []

    def work(n: int) -> None:
        try:
            usdm.free(address)
            freed.append(n)
        except errors.DoubleFree:
            pass

    run(work)
    assert len(freed) == 1
    with pytest.raises(errors.NotMapped):
        usdm.virt_to_phys(address)
