"""Whose response is whose, which interrupt is due, and what happens to a device that is closed at work."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from fake_qat import IOVA, Rig, rigged

from harness.agent import qat_layout as q
from harness.agent.outcome import DmaTimeout, InterruptLost
from harness.agent.qat_ring import ENTRIES, Response
from usdm.errors import DeviceError

SHORT, SOON = 0.3, 0.05
LOAD = q.LOAD, [(IOVA, 8)]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with rigged(monkeypatch) as rig:
        yield rig


def left(rig: Rig, **more: bool) -> int:
    number = rig.nop(**more)
    rig.driver.leave(number)
    return number


# ---- interrupts


def test_a_second_response_does_not_hide_an_interrupt(rig: Rig) -> None:
    for polled in (False, True):
        rig.plan("complete_twice")
        rig.driver.finish(rig.nop(interrupt=not polled), interrupt=not polled)
        rig.driver.finish(rig.nop(interrupt=True), interrupt=True)
    assert rig.driver.unasked == 2


def test_a_full_ring_is_counted_to_its_end(rig: Rig) -> None:
    rig.driver.start()
    rings = rig.driver._rings
    assert rings is not None
    assert rings.count() == 0
    rings._responses[:] = bytes(len(rings._responses))
    assert rings.count() == ENTRIES


def test_an_interrupt_is_not_lost_before_it_is_due(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.agent.qat_responses._GRACE_SECONDS", SOON)
    rig.plan("")
    rig.plan("delay", milliseconds=300)
    first = left(rig, interrupt=True)
    assert rig.driver.finish(rig.driver.submit(*LOAD, interrupt=True), interrupt=True).code == q.DONE
    assert rig.driver.collect(1)[0].opaque == first


def test_an_interrupt_that_is_not_due_in_time(rig: Rig) -> None:
    rig.plan("")
    rig.plan("stop_answering")
    left(rig, interrupt=True, ring=False)  # the device learns of both at once, so of none too late
    left(rig, interrupt=True)
    with pytest.raises(DmaTimeout, match="its interrupt is not due"):
        rig.driver.collect(1, interrupt=True, seconds=SHORT)


def test_an_interrupt_is_waited_for_in_short_pieces(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Poll:
        def register(self, *_: int) -> None: ...

        def poll(self, milliseconds: float) -> list[Any]:
            waits.append(milliseconds)
            return []

    monkeypatch.setattr(select, "poll", Poll)
    rig.plan("stop_answering")
    number = rig.nop(interrupt=True)
    with pytest.raises(DmaTimeout):
        rig.driver.finish(number, interrupt=True, seconds=0.0)
    assert sum(waits) <= 100


# ---- whose a response is


def test_after_a_lost_interrupt_everybody_gets_his_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.agent.qat_responses._GRACE_SECONDS", SOON)
    rig.plan("lose_interrupt")
    first = left(rig, interrupt=True, ring=False)
    with pytest.raises(InterruptLost):
        rig.driver.finish(rig.nop(interrupt=True), interrupt=True)
    assert rig.driver._responses.waited_for == 0
    rig.driver.finish(rig.nop())
    second = left(rig)
    assert [response.opaque for response in rig.driver.collect(2)] == [first, second]
    assert rig.driver.unasked == 0


def test_a_response_whose_interrupt_was_lost_can_be_collected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.agent.qat_responses._GRACE_SECONDS", SOON)
    rig.plan("lose_interrupt")
    number = left(rig, interrupt=True)
    with pytest.raises(InterruptLost):
        rig.driver.collect(1, interrupt=True)
    assert [response.opaque for response in rig.driver.collect(1)] == [number]


def test_a_response_that_was_given_up_is_nobody_else_s(rig: Rig) -> None:
    rig.nop()  # nobody waits for it, and nobody left it
    number = rig.nop()
    assert rig.driver.finish(number).opaque == number
    second = left(rig)
    assert [response.opaque for response in rig.driver.collect(1)] == [second]


def test_the_time_is_for_all_responses(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float] = []
    following = rig.driver._responses._next

    def noted(interrupt: bool, end: float) -> Response:
        ends.append(end)
        return following(interrupt, end)

    monkeypatch.setattr(rig.driver._responses, "_next", noted)
    for _ in range(3):
        left(rig)
    rig.driver.collect(3)
    assert len(ends) == 3
    left(rig)
    left(rig)
    rig.driver.finish(rig.nop())
    assert len(ends) == 6
    assert len(set(ends)) == 2


# ---- closing at work


@pytest.fixture
def busy(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the device was busy whenever a mapping was taken away."""
    seen: list[bool] = []
    unmap = rig.fake.container.unmap_dma

    def noted(iova: int, size: int) -> int:
        seen.append(bool(rig.fake.model._status() & q.BUSY))
        return unmap(iova, size)

    monkeypatch.setattr(rig.fake.container, "unmap_dma", noted)
    return seen


def test_a_device_that_works_is_waited_for(rig: Rig, busy: list[bool]) -> None:
    rig.plan("delay", milliseconds=100)
    rig.driver.submit(*LOAD)
    rig.driver.close()
    assert (busy, rig.fake.model.counters.resets) == ([False], 0)


def test_a_device_that_holds_a_request_is_reset(rig: Rig, busy: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.agent.qat._REST_SECONDS", SOON)
    rig.plan("hold")
    rig.driver.submit(*LOAD)
    rig.driver.close()
    assert (busy, rig.fake.model.counters.resets) == ([False], 1)


def test_a_device_that_hangs_is_reset_at_once(rig: Rig, busy: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    rig.plan("stop_answering")
    with pytest.raises(DmaTimeout):
        rig.driver.finish(rig.nop(), seconds=SHORT)
    monkeypatch.setattr("harness.agent.qat.time.sleep", lambda seconds: pytest.fail("it was waited for"))
    rig.driver.close()
    assert (busy, rig.fake.model.counters.resets) == ([False], 1)


@pytest.mark.parametrize("reads", [0xFFFF_FFFF, 0])
def test_a_device_that_is_gone_is_neither_waited_for_nor_reset(
    rig: Rig, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.plan("stop_answering")
    rig.driver.submit(*LOAD)
    rig.fake.gone, rig.fake.reads = True, reads
    monkeypatch.setattr("harness.agent.qat.time.sleep", lambda seconds: pytest.fail("it was waited for"))
    rig.driver.close()
    assert rig.fake.model.counters.resets == 0


def test_a_device_that_cannot_be_reset_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise DeviceError("device", rig.fake.bdf, 25, "VFIO_DEVICE_RESET")

    monkeypatch.setattr("harness.agent.qat._REST_SECONDS", 0.0)
    monkeypatch.setattr(rig.fake, "reset", refused)
    rig.plan("hold")
    rig.driver.submit(*LOAD)
    with pytest.raises(DeviceError):
        rig.driver.close()
