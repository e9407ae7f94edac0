"""The user-space driver of the QAT-like device on its real model: requests, responses, and what can go wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fake_qat import IOVA, Rig, rigged

from harness.agent import qat_layout as q
from harness.agent.outcome import (
    DeviceBusy,
    DmaAddress,
    DmaLength,
    DmaTimeout,
    InterruptLost,
    NothingHanded,
)
from harness.agent.qat import NotQat, Qat, completion
from harness.agent.qat_ring import MOST_IN_FLIGHT

LAST = (1 << 64) - 1
UNMAPPED = 0x90_0000
SHORT = 0.3


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with rigged(monkeypatch) as rig:
        yield rig


def test_bytes_go_through_the_devices_own(rig: Rig) -> None:
    rig.memory[:5000] = bytes(number % 251 for number in range(5000))
    said = rig.driver.dma(IOVA, 5000, 77, write=False)
    assert said is not None
    assert (said.status, said.refused, said.reason) == ("done", None, "")
    assert rig.driver.dma(IOVA + 8192, 5000, 77, write=True).status == "done"  # type: ignore[union-attr]
    assert rig.memory[8192:13192] == rig.memory[:5000]


@pytest.mark.parametrize(("write", "status"), [(False, "read_refused"), (True, "write_refused")])
def test_a_refused_dma_says_so(rig: Rig, write: bool, status: str) -> None:
    said = rig.driver.dma(UNMAPPED + 3, 16, 0, write=write)
    assert said is not None
    assert (said.status, said.refused) == (status, UNMAPPED + 3)


@pytest.mark.parametrize("size", [1, 4096, 60_000])
def test_flat_and_listed_copies(rig: Rig, size: int) -> None:
    rig.memory[0:1] = b"x"
    rig.memory[size - 1 : size] = b"y"
    pieces = [(IOVA, size)] if size == 1 else [(IOVA, 1), (IOVA + 1, size - 1)]
    response = rig.driver.finish(rig.driver.submit(q.CRC32, pieces))
    assert (response.code, response.address) == (q.DONE, 0)
    response = rig.driver.finish(rig.driver.submit(q.COMPARE, pieces, [(IOVA, size)]))
    assert (response.code, response.result) == (q.DONE, q.EQUAL)


def test_more_requests_than_the_rings_have_entries(rig: Rig) -> None:
    for _ in range(3):
        numbers = [rig.nop(ring=number == 39) for number in range(40)]
        for number in numbers[:-1]:
            rig.driver.leave(number)
        assert rig.driver.finish(numbers[-1]).opaque == numbers[-1]
        assert [response.opaque for response in rig.driver.collect(39)] == numbers[:-1]
    assert rig.driver.counters()["responses"] == 120


def test_responses_that_were_left_are_collected_in_order(rig: Rig) -> None:
    left = [rig.nop(), rig.nop()]
    for number in left:
        rig.driver.leave(number)
    assert rig.driver.dma(IOVA, 8, 0, write=False).status == "done"  # type: ignore[union-attr]
    third = rig.nop()
    rig.driver.leave(third)
    assert [response.opaque for response in rig.driver.collect(3)] == [*left, third]
    with pytest.raises(NothingHanded):
        rig.driver.collect(1)


def test_too_much_at_once(rig: Rig) -> None:
    for _ in range(MOST_IN_FLIGHT):
        rig.driver.leave(rig.nop(ring=False))
    with pytest.raises(DeviceBusy, match="48 requests"):
        rig.nop()
    rig.driver._rings.ring()  # type: ignore[union-attr]
    rig.driver.collect(MOST_IN_FLIGHT)
    twice = [(IOVA, 1), (IOVA + 1, 1)]
    for _ in range(6):
        rig.driver.leave(rig.driver.submit(q.COPY, twice, twice, ring=False))
    with pytest.raises(DeviceBusy, match="12 scatter lists"):
        rig.driver.submit(q.CRC32, twice)
    rig.driver._rings.ring()  # type: ignore[union-attr]
    rig.driver.collect(6)
    rig.driver.finish(rig.driver.submit(q.COPY, twice, twice))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ([(IOVA, 0)], DmaLength),
        ([(IOVA, (16 << 20) + 1)], DmaLength),
        ([(IOVA, 16 << 20), (IOVA, 1)], DmaLength),
        ([(IOVA, 1)] * 256, DmaLength),
        ([(LAST, 2)], DmaAddress),
        ([(-1, 2)], DmaAddress),
    ],
)
def test_what_the_device_cannot_do_is_not_handed_over(
    rig: Rig, source: list[tuple[int, int]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        rig.driver.submit(q.CRC32, source)
    assert rig.fake.writes == []


@pytest.mark.parametrize(("size", "offset"), [(1, 16 << 20), (8, -1), (0, 0), (4096, (16 << 20) - 4095)])
def test_what_is_not_inside_the_devices_own(rig: Rig, size: int, offset: int) -> None:
    with pytest.raises(DmaLength):
        rig.driver.dma(IOVA, size, offset, write=True)


def test_an_invalid_request_says_why(rig: Rig) -> None:
    response = rig.driver.finish(rig.driver.submit(q.COPY, [(IOVA, 8)], [(IOVA + 100, 9)]))
    said = completion(response)
    assert (said.status, said.reason, said.refused) == ("invalid", "UNEQUAL", None)


def test_a_response_has_come_when_both_its_ends_have(rig: Rig) -> None:
    rig.driver.start()
    page = rig.driver._memory.page(1)  # type: ignore[union-attr]
    rings = rig.driver._rings
    assert rings is not None
    for at in (0, 28):
        page[at : at + 4] = bytes(4)
        assert rings.has_come() is (at == 28)
    page[0:4] = b"\x7f" * 4
    assert not rings.has_come()
    assert not rings.has_come(1)


# ---- interrupts


def test_interrupts_announce_responses(rig: Rig) -> None:
    for _ in range(3):
        rig.driver.finish(rig.nop(interrupt=True), interrupt=True)
    assert rig.driver.counters()["interrupts"] == 3
    rig.driver.finish(rig.nop())
    assert rig.driver.counters()["interrupts"] == 3
    numbers = [rig.nop(interrupt=True, ring=number == 4) for number in range(5)]
    for number in numbers:
        rig.driver.leave(number)
    assert len(rig.driver.collect(2, interrupt=True)) == 2
    assert len(rig.driver.collect(3, interrupt=True)) == 3
    assert rig.driver.counters()["interrupts"] == 4


def test_a_lost_interrupt_is_told_and_the_device_can_be_used(rig: Rig) -> None:
    rig.plan("lose_interrupt")
    with pytest.raises(InterruptLost, match=r"02:00\.0 responded"):
        rig.driver.finish(rig.nop(interrupt=True), interrupt=True)
    rig.driver.finish(rig.nop(interrupt=True), interrupt=True)
    assert rig.driver.unasked == 0


def test_a_response_too_many_is_counted(rig: Rig) -> None:
    rig.plan("complete_twice", 2)
    first, second = rig.nop(), rig.nop()
    rig.driver.leave(first)
    assert rig.driver.finish(second).opaque == second
    assert rig.driver.collect(1)[0].opaque == first
    rig.driver.finish(rig.nop())
    assert rig.driver.unasked == 2


# ---- no answer


def test_a_device_that_stops_answering(rig: Rig) -> None:
    rig.plan("stop_answering")
    with pytest.raises(DmaTimeout, match=r"02:00\.0 has STATUS 0x3 \(ready, busy\)"):
        rig.driver.finish(rig.nop(), seconds=SHORT)
    with pytest.raises(DmaTimeout, match="the rings cannot be set up"):
        rig.driver.submit(q.NOP, seconds=SHORT)
    rig.driver.reset()
    assert rig.driver.finish(rig.nop()).code == q.DONE


@pytest.mark.parametrize("interrupt", [False, True])
def test_without_bus_mastering_only_a_reset_helps(rig: Rig, interrupt: bool) -> None:
    rig.fake.set_bus_master(False)
    with pytest.raises(DmaTimeout, match=r"ERROR 1 \(REQUEST_RING_REFUSED\) at 0x.*does nothing.*bus mastering is off"):
        rig.driver.finish(rig.nop(interrupt=interrupt), interrupt=interrupt)
    rig.fake.set_bus_master(True)
    with pytest.raises(DmaTimeout, match=r"does nothing before a reset$"):
        rig.nop()
    rig.driver.reset()
    assert rig.driver.finish(rig.nop(interrupt=interrupt), interrupt=interrupt).code == q.DONE


@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize(("reads", "words"), [(0xFFFF_FFFF, "all ones"), (0, "zeros")])
def test_a_device_that_is_gone(rig: Rig, interrupt: bool, reads: int, words: str) -> None:
    rig.plan("stop_answering")
    number = rig.nop(interrupt=interrupt)
    rig.fake.gone, rig.fake.reads = True, reads
    with pytest.raises(DmaTimeout, match=rf"02:00\.0 does not answer, its registers read as {words}"):
        rig.driver.finish(number, interrupt=interrupt)
    with pytest.raises(NotQat, match="does not answer"):
        rig.driver.counters()
    with pytest.raises(DmaTimeout, match=r"cannot be set up.*does not answer"):
        rig.nop()


@pytest.mark.parametrize(
    ("value", "words"),
    [(0x1234, "identifies itself as 0x1234"), (0, "does not answer"), (0xFFFF_FFFF, "does not answer")],
)
def test_another_device_is_not_taken(rig: Rig, value: int, words: str) -> None:
    fake = rig.fake
    fake.model.bars[0]._at[0][0].value = value
    with pytest.raises(NotQat, match=words):
        Qat(fake, fake.container)  # type: ignore[arg-type]
    fake.closed = False


# ---- whose the rings are


def test_a_reset_loses_what_was_on_its_way(rig: Rig) -> None:
    rig.driver.leave(rig.nop())
    rig.driver.reset()
    with pytest.raises(NothingHanded):
        rig.driver.collect(1)
    assert rig.driver.finish(rig.nop()).code == q.DONE


def test_another_process_has_rings_of_its_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.driver.leave(rig.nop())
    mine = os.getpid()
    monkeypatch.setattr("harness.agent.qat.os.getpid", lambda: mine + 1)
    with pytest.raises(DmaTimeout, match="another process"):
        rig.driver.collect(1)
    assert rig.driver.finish(rig.nop()).code == q.DONE
    assert rig.driver._owner[-1] == mine + 1
    monkeypatch.setattr("harness.agent.qat.os.getpid", lambda: mine)
    assert rig.driver.finish(rig.nop()).code == q.DONE
    assert rig.driver.counters()["requests"] == 3


def test_closing_twice_and_using_a_closed_device(rig: Rig) -> None:
    rig.driver.close()
    rig.driver.close()
    for use in (rig.nop, rig.driver.counters, rig.driver.state):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_no_place_for_the_rings(rig: Rig) -> None:
    from harness.agent.queue_memory import NoQueueMemory

    class Narrow:
        no_iommu = False

        def info(self) -> SimpleNamespace:
            return SimpleNamespace(iova_ranges=((0, 0xFFFF),))

    with pytest.raises(NoQueueMemory):
        Qat(rig.fake, Narrow())  # type: ignore[arg-type]
