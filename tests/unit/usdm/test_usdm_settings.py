from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from usdm_fake_vfio import Factory, FakeVfio
from usdm_faulty_kernel import FaultyKernel

from usdm import errors, qae_mem
from usdm.driver import Usdm
from usdm.settings import HUGEPAGES, THREAD_SPECIFIC, from_environment

PAGE, KIB, MIB = 4096, 1024, 1 << 20


@pytest.mark.parametrize(("text", "pages"), [("1", 1), ("65536", 65536), ("007", 7)])
def test_a_number_of_hugepages(text: str, pages: int) -> None:
    found = from_environment({HUGEPAGES: text})
    assert (found.hugepages, found.ignored, found.thread_specific) == (pages, "", False)


@pytest.mark.parametrize("text", ["", "0", "65537", "abc", "5 ", "0x10", "-1", "+5", "1_0", "1.0", "٣", "9" * 30])
def test_anything_else_is_4_kib_mode_and_is_told(text: str, vfio: FakeVfio) -> None:
    found = from_environment({HUGEPAGES: text})
    assert (found.hugepages, found.ignored) == (0, text)
    usdm = Usdm(vfio.ioctl, environment={HUGEPAGES: text})
    usdm.allocate(KIB)
    assert usdm.statistics()["hugepages_ignored"] == text
    assert usdm.statistics()["mode"] == "4K"


@pytest.mark.parametrize(("text", "on"), [("1", True), ("", False), ("0", False), ("yes", False)])
def test_thread_specific(text: str, on: bool) -> None:
    assert from_environment({THREAD_SPECIFIC: text}).thread_specific is on


def test_the_environment_is_read_at_the_first_use_and_after_close(vfio: FakeVfio) -> None:
    kernel = FaultyKernel(vfio, 8)
    environment: dict[str, str] = {}
    usdm = Usdm(kernel=kernel, environment=environment)
    environment[HUGEPAGES] = "3"
    usdm.allocate(KIB)
    assert kernel.taken == 1
    environment[HUGEPAGES] = ""
    usdm.allocate(4 * MIB)
    assert usdm.statistics()["mode"] == "2M"
    usdm.close()
    assert kernel.memory == {}
    usdm.allocate(KIB)
    assert (kernel.taken, usdm.statistics()["mode"]) == (0, "4K")


def test_the_c_names_use_the_environment() -> None:
    import os

    assert qae_mem.default_instance()._environment is os.environ


@pytest.fixture
def alone(vfio: FakeVfio) -> Usdm:
    return Usdm(vfio.ioctl, thread_specific=True)


def in_thread(call: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_map_and_unmap_are_not_supported(alone: Usdm, vfio: FakeVfio, buffer: Factory) -> None:
    virt = buffer(PAGE).address
    for _ in range(2):
        for call in (alone.map, alone.unmap):
            for arguments in ((virt, PAGE), (0, 0), (virt + 1, PAGE)):
                with pytest.raises(errors.Unsupported, match="thread-specific"):
                    call(*arguments)
        fd = vfio.open()
        if not alone.registered:
            alone.register_device(fd)
    assert vfio.calls == []


def test_slabs_are_not_shared_between_threads(alone: Usdm, vfio: FakeVfio) -> None:
    alone.register_device(vfio.open())
    alive = threading.Barrier(3)
    slabs: list[set[int]] = []

    def work() -> None:
        alive.wait()  # so that no thread has the number of one that has ended
        blocks = [alone.allocate(KIB) for _ in range(20)]
        slabs.append({address >> 21 for address in blocks})
        alive.wait()
        for address in blocks:
            alone.free(address)
        again = [alone.allocate(KIB) for _ in range(20)]
        assert {address >> 21 for address in again} <= slabs[-1] | {address >> 21 for address in blocks}
        alive.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(slabs) == 3
    assert len(set.union(*slabs)) == 3
    assert alone.statistics()["mode"] == "4K thread"


def test_a_block_freed_by_another_thread_goes_back_to_its_slab(alone: Usdm) -> None:
    first = alone.allocate(KIB)
    other = in_thread(lambda: alone.allocate(KIB))
    assert first >> 21 != other >> 21
    in_thread(lambda: alone.free(first) or 0)
    with pytest.raises(errors.DoubleFree):
        alone.free(first)
    assert alone.allocate(2 * MIB - 1) >> 21 == first >> 21
