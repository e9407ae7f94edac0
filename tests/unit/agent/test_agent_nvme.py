"""The user-space NVMe driver on a controller that only pretends: queues, PRPs, and what can go wrong."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest
from fake_nvme import CC, CSTS, PAGE, FakeContainer, FakeNvme

from harness.agent import nvme_virtual, queue_memory
from harness.agent.nvme import NotNvme, Nvme, NvmeStatus
from harness.agent.outcome import DmaAddress, DmaLength, DmaTimeout
from harness.agent.queue_memory import NoQueueMemory, place_of
from usdm.errors import MapFailed

QUEUES = (1 << 48) - 65536 * (0x200 + 1)
BUFFER = 0x200000
SIZE = 1 << 20


@pytest.fixture
def container() -> FakeContainer:
    return FakeContainer()


@pytest.fixture
def fake(container: FakeContainer) -> Iterator[FakeNvme]:
    one = FakeNvme(container)
    yield one
    one.end()


@pytest.fixture
def nvme(fake: FakeNvme, container: FakeContainer) -> Iterator[Nvme]:
    one = Nvme(fake, container)  # type: ignore[arg-type]
    one.set_bus_master(True)
    yield one
    fake.end()
    one.close()


@pytest.fixture
def memory(container: FakeContainer) -> memoryview:
    """A megabyte at `BUFFER`, and a page in front of it."""
    pages = mmap.mmap(-1, SIZE + PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    container.entries[BUFFER] = address, SIZE + PAGE
    return memoryview(pages)


def test_an_open_controller_is_stopped_and_no_bus_master(fake: FakeNvme, container: FakeContainer) -> None:
    one = Nvme(fake, container)  # type: ignore[arg-type]
    assert fake.command == 2
    assert fake.commands == []
    assert container.log == [("map", QUEUES, 6 * PAGE)]
    fake.end()
    one.close()


def test_the_first_dma_starts_it(fake: FakeNvme, nvme: Nvme, memory: memoryview) -> None:
    nvme.dma(BUFFER, 512, 0, write=False)
    assert [(queue, opcode) for queue, opcode, *_ in fake.commands] == [
        *((0, 0x06), (0, 0x06), (0, 0x09), (0, 0x05), (0, 0x01)),
        (1, 0x01),
    ]
    assert (nvme.controller, nvme.size, nvme.sector, nvme.longest) == (3, 16 << 20, 512, 512 << 10)
    nvme.dma(BUFFER, 512, 0, write=True)
    assert len(fake.commands) == 7, "it is started once"


@pytest.mark.parametrize("offset", [0, 4, 512, 2052, 4092])
@pytest.mark.parametrize("size", [512, 4096, 4608, 8192, 65536, 524288])
def test_prps_name_the_memory_and_no_other(
    fake: FakeNvme, nvme: Nvme, memory: memoryview, offset: int, size: int
) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    memory[offset : offset + size] = data[:size]
    nvme.dma(BUFFER + offset, size, 8192, write=False)
    assert fake.content[8192 : 8192 + size] == data[:size]
    assert not any(fake.content[:8192])
    pieces = list(fake.moved)
    assert pieces[0] == (BUFFER + offset, min(size, PAGE - offset))
    assert sum(piece for _, piece in pieces) == size
    assert all(one + piece == other for (one, piece), (other, _) in pairwise(pieces))
    memory[:] = bytes(len(memory))
    nvme.dma(BUFFER + offset, size, 8192, write=True)
    assert memory[offset : offset + size] == data[:size]
    assert not any(memory[:offset])
    assert not any(memory[offset + size :])


def test_the_queues_are_rings(fake: FakeNvme, nvme: Nvme, memory: memoryview) -> None:
    for number in range(200):
        memory[:4] = number.to_bytes(4, "little")
        nvme.dma(BUFFER, 512, 512 * number, write=False)
    assert [fake.content[512 * number] for number in range(200)] == list(range(200))


@pytest.mark.parametrize(
    ("size", "offset", "error"),
    [
        *((0, 0, "whole sectors"), (-512, 0, "whole sectors"), (100, 0, "whole sectors of 512"), (513, 0, "sectors")),
        *((512, 1, "sectors"), (512 * 1025, 0, "at most 524288"), (512, 16 << 20, "of 16777216")),
        *((1024, (16 << 20) - 512, "of 16777216"), (512, -512, "of 16777216")),
    ],
)
def test_what_it_cannot_copy_never_reaches_it(fake: FakeNvme, nvme: Nvme, size: int, offset: int, error: str) -> None:
    nvme.start()
    before = len(fake.commands)
    with pytest.raises(DmaLength, match=error):
        nvme.dma(BUFFER, size, offset, write=True)
    with pytest.raises(DmaAddress, match="0x200002"):
        nvme.dma(BUFFER + 2, 512, 0, write=True)
    assert len(fake.commands) == before


def test_a_refused_command_has_its_status(fake: FakeNvme, nvme: Nvme, memory: memoryview) -> None:
    fake.status = 2 << 8 | 0x81
    with pytest.raises(NvmeStatus, match="type 0x2, code 0x81"):
        nvme.dma(BUFFER, 512, 0, write=True)
    fake.status = 0
    nvme.dma(BUFFER, 512, 0, write=True)
    fake.refused = {0x05}
    with pytest.raises(NvmeStatus, match="admin command 0x05"):
        nvme.restart()


def test_data_that_the_iommu_refuses_is_success_all_the_same(fake: FakeNvme, nvme: Nvme) -> None:
    nvme.dma(0x900000, 512, 0, write=True)
    assert fake.moved == [(0x900000, 512)]


def test_a_controller_without_bus_mastering_says_so_and_comes_back(
    fake: FakeNvme, nvme: Nvme, memory: memoryview
) -> None:
    nvme.set_bus_master(False)
    with pytest.raises(DmaTimeout, match=r"02:00\.0 cannot reach its queues .*: bus mastering is off"):
        nvme.dma(BUFFER, 512, 0, write=True)
    assert struct.unpack_from("<I", fake.bar, CC)[0] == 0
    nvme.set_bus_master(True)
    nvme.dma(BUFFER, 512, 0, write=True)


def test_queues_that_are_unmapped(nvme: Nvme, memory: memoryview, container: FakeContainer) -> None:
    nvme.dma(BUFFER, 512, 0, write=True)
    kept = container.entries.pop(QUEUES)
    with pytest.raises(DmaTimeout, match=r"CSTS\.CFS\)$"):
        nvme.dma(BUFFER, 512, 0, write=True)
    container.entries[QUEUES] = kept


def test_a_dma_that_does_not_end_is_stopped(fake: FakeNvme, nvme: Nvme, memory: memoryview) -> None:
    nvme.start()
    fake.answers = False
    with pytest.raises(DmaTimeout, match=r"completed nothing in 0\.05 s"):
        nvme.dma(BUFFER, 512, 0, write=False, seconds=0.05)
    assert struct.unpack_from("<II", fake.bar, CC)[0] == 0
    fake.answers = True
    memory[:4] = b"news"
    nvme.dma(BUFFER, 512, 0, write=False)
    assert fake.content[:4] == b"news", "a completion of an earlier life is not taken for this one"


def test_a_controller_that_was_reset_by_others(fake: FakeNvme, nvme: Nvme) -> None:
    nvme.start()
    fake.answers = False
    struct.pack_into("<I", fake.bar, CSTS, 0)
    with pytest.raises(DmaTimeout, match="is stopped"):
        nvme.dma(BUFFER, 512, 0, write=False)


def test_a_vf_that_is_offline(fake: FakeNvme, nvme: Nvme) -> None:
    fake.online = False
    with pytest.raises(NotNvme, match="must be online first"):
        nvme.dma(BUFFER, 512, 0, write=False)


def test_a_controller_without_namespace(fake: FakeNvme, nvme: Nvme) -> None:
    fake.sectors = 0
    with pytest.raises(NotNvme, match="no namespace 1"):
        nvme.start()


def test_a_device_that_does_not_answer_is_closed(fake: FakeNvme, container: FakeContainer) -> None:
    fake.end()
    fake.stop.clear()
    struct.pack_into("<I", fake.bar, CSTS, 0xFFFFFFFF)
    with pytest.raises(NotNvme, match="does not answer"):
        Nvme(fake, container)  # type: ignore[arg-type]
    assert fake.seen == ["close, 0 mapped"]
    assert container.log == []


def test_a_forked_child_and_its_parent_take_turns(fake: FakeNvme, nvme: Nvme, memory: memoryview) -> None:
    """Neither knows how far the other has come in the queues."""
    nvme.dma(BUFFER, 512, 0, write=False)
    child = os.fork()
    if not child:
        try:
            for number in range(1, 4):
                memory[:1] = bytes((number,))
                nvme.dma(BUFFER, 512, 512 * number, write=False)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    memory[:1] = b"p"
    nvme.dma(BUFFER, 512, 512 * 4, write=False)
    assert [fake.content[512 * number] for number in range(5)] == [0, 1, 2, 3, ord("p")]


# ---- queue memory


def test_closing_takes_the_queues_away_while_the_device_is_open(
    fake: FakeNvme, nvme: Nvme, container: FakeContainer
) -> None:
    nvme.start()
    bar = fake.bar
    fake.end()
    nvme.close()
    nvme.close()
    assert container.log == [("map", QUEUES, 6 * PAGE), ("unmap", QUEUES, 6 * PAGE)]
    assert fake.seen == ["close, 0 mapped", "close, 0 mapped"]
    assert bar.closed


def test_a_place_that_is_taken(fake: FakeNvme, container: FakeContainer) -> None:
    container.taken = True
    with pytest.raises(MapFailed, match="0xfffffdff0000"):
        Nvme(fake, container)  # type: ignore[arg-type]
    assert fake.seen == ["close, 0 mapped"]


@pytest.mark.parametrize(
    ("bdf", "ranges", "place"),
    [
        ("02:00.0", ((0, (1 << 39) - 1),), 0x7FFFFFFFFF + 1 - 0x10000 * 0x201),
        ("0000:02:01.2", ((0, 9), (0x1000000, (1 << 48) - 1)), (1 << 48) - 0x10000 * 0x20B),
        ("00:00.0", None, None),
    ],
)
def test_each_requester_has_a_place_of_its_own(
    bdf: str, ranges: tuple[tuple[int, int], ...] | None, place: int | None
) -> None:
    found = place_of(bdf, ranges)
    assert found % 65536 == 0
    assert place in (None, found)


def test_a_container_that_is_too_small() -> None:
    with pytest.raises(NoQueueMemory, match="0x100000 to 0x1fffff has no place"):
        place_of("ff:1f.7", ((0x100000, 0x1FFFFF),))


def test_without_an_iommu_the_addresses_are_physical(
    fake: FakeNvme, container: FakeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.no_iommu = True

    def physical(address: int, pages: int) -> list[int]:
        where = [0x7000_0000 - number * 0x3000 for number in range(pages)]
        for number, place in enumerate(where):
            container.entries[place] = address + number * PAGE, PAGE
        return where

    monkeypatch.setattr(queue_memory, "physical_addresses", physical)
    one = Nvme(fake, container)  # type: ignore[arg-type]
    one.set_bus_master(True)
    one.dma(0x900000, 512, 0, write=True)
    assert fake.moved == [(0x900000, 512)]
    fake.end()
    one.close()
    assert container.log == []


@pytest.mark.parametrize(("entry", "found"), [(1 << 63 | 0x1234, 0x1234000), (1 << 63, None), (0x1234, None)])
def test_physical_addresses_are_those_of_pagemap(
    monkeypatch: pytest.MonkeyPatch, entry: int, found: int | None
) -> None:
    asked = []

    def pread(fd: int, size: int, offset: int) -> bytes:
        asked.append((size, offset))
        return struct.pack("=QQ", 1 << 63 | 1 << 61 | 5, entry)

    monkeypatch.setattr(queue_memory.os, "pread", pread)
    if found is None:
        with pytest.raises(NoQueueMemory, match="does not tell"):
            queue_memory.physical_addresses(0x7000, 2)
    else:
        assert queue_memory.physical_addresses(0x7000, 2) == [5 * PAGE, found]
    assert asked == [(16, 56)]


# ---- VFs


def managed(fake: FakeNvme) -> list[tuple[int, int, int, int]]:
    """Action, resource, controller and number of each virtualization management command."""
    found = [(one[5], one[6]) for one in fake.commands if one[:2] == (0, 0x1C)]
    return [(word & 0xF, word >> 8 & 7, word >> 16, number) for word, number in found]


@pytest.mark.parametrize(
    ("primary", "released"), [((32, 16), [(1, 1, 3, 0), (1, 0, 3, 0)]), ((0, 16), [(1, 1, 3, 0)]), ((0, 0), [])]
)
def test_flexible_resources_are_taken_from_the_pf_by_a_reset(
    fake: FakeNvme, nvme: Nvme, primary: tuple[int, int], released: list[tuple[int, int, int, int]]
) -> None:
    fake.primary = primary
    nvme_virtual.release_flexible(nvme)
    assert managed(fake) == released
    starts = [one[1] for one in fake.commands].count(0x05)
    assert starts == (2 if released else 1), "it is started again for it"


def test_vfs_get_their_resources_and_are_set_online(fake: FakeNvme, nvme: Nvme) -> None:
    fake.secondaries = [(1, 9), (2, 5), (10, 30)]
    assert nvme_virtual.secondaries(nvme) == {1: 9, 2: 5, 10: 30}
    nvme_virtual.set_online(nvme, [10, 1])
    assert managed(fake) == [
        *((8, 1, 30, 1), (8, 0, 30, 2), (9, 0, 30, 0)),
        *((8, 1, 9, 1), (8, 0, 9, 2), (9, 0, 9, 0)),
    ]
    with pytest.raises(nvme_virtual.NoSecondary, match="VF 3"):
        nvme_virtual.set_online(nvme, [3])
    fake.refused = {0x1C}
    with pytest.raises(NvmeStatus, match="admin command 0x1c"):
        nvme_virtual.set_online(nvme, [2])
