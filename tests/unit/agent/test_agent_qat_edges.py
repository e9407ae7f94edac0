"""A response at the last moment, interrupts of before and of others, lists of requests that failed, what ends first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_qat import IOVA, Rig, rigged
from test_agent_qat_claims import LOAD, SOON, left

from harness.agent import qat_layout as q
from harness.agent.outcome import DeviceBusy, InterruptLost

TWICE = [(IOVA, 1), (IOVA + 1, 1)]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    with rigged(monkeypatch) as rig:
        yield rig


@pytest.mark.parametrize("interrupt", [False, True])
def test_a_response_that_comes_while_it_looks_for_the_last_time_is_taken(
    rig: Rig, interrupt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.plan("hold")
    number = rig.driver.submit(*LOAD, interrupt=interrupt)
    status = rig.driver.status

    def looked() -> int:
        if not rig.driver._rings.has_come():  # type: ignore[union-attr]
            rig.let_go()
            rig.rest()
        return status()

    monkeypatch.setattr(rig.driver, "status", looked)
    assert rig.driver.finish(number, interrupt=interrupt, seconds=0.0).code == q.DONE


# ---- interrupts


def test_an_interrupt_of_before_stands_for_none_that_was_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.agent.qat_responses._GRACE_SECONDS", SOON)
    rig.driver.finish(rig.nop(interrupt=True))
    rig.rest()
    assert rig.driver.counters()["interrupts"] == 1, "nobody has waited for it"
    rig.plan("lose_interrupt")
    number = rig.nop(interrupt=True)
    rig.rest()
    with pytest.raises(InterruptLost):
        rig.driver.finish(number, interrupt=True)


def test_nor_does_it_when_interrupts_are_switched_on_again_with_a_request_on_its_way(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.agent.qat_responses._GRACE_SECONDS", SOON)
    rig.driver.finish(rig.nop(interrupt=True))
    rig.rest()
    rig.plan("")
    rig.plan("lose_interrupt")
    rig.nop(ring=False)  # switches them off
    number = rig.nop(interrupt=True)
    rig.rest()
    assert rig.driver.counters()["interrupts"] == 1
    with pytest.raises(InterruptLost):
        rig.driver.finish(number, interrupt=True)


def test_a_request_without_an_interrupt_takes_none_from_those_before_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.agent.qat_responses._GRACE_SECONDS", SOON)
    rig.plan("hold")
    first = rig.driver.submit(*LOAD, interrupt=True)
    rig.driver.leave(first)
    second = left(rig)
    rig.let_go()
    assert [response.opaque for response in rig.driver.collect(2, interrupt=True)] == [first, second]
    rig.driver.finish(rig.nop())
    assert rig.fake[q.RING_INT_ENABLE // 4] == 0, "nobody waits for one any more"


# ---- lists


def test_a_request_that_finds_one_list_of_two_keeps_none(rig: Rig) -> None:
    for _ in range(11):
        rig.driver.leave(rig.driver.submit(q.CRC32, TWICE, ring=False))
    for _ in range(3):
        with pytest.raises(DeviceBusy, match="12 scatter lists"):
            rig.driver.submit(q.COPY, TWICE, TWICE)
    rig.driver.leave(rig.driver.submit(q.CRC32, TWICE))
    assert len(rig.driver.collect(12)) == 12


# ---- the end


@pytest.fixture
def told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a closing driver does, in its order; and whether the device still worked when its rings' mapping went."""
    said: list[str] = []

    def note(owner: Any, name: str, word: Callable[[], str]) -> None:
        original = getattr(owner, name)

        def noted(*arguments: Any) -> Any:
            said.append(word())
            return original(*arguments)

        monkeypatch.setattr(owner, name, noted)

    def unmapped() -> str:
        model = rig.fake.model
        return "unmapped at work" if model._requests.enabled or model._status() & q.BUSY else "unmapped"

    rig.driver.start()
    monkeypatch.setattr(rig.driver, "_bar", SimpleNamespace(close=lambda: None))  # else it is the device, too
    note(rig.fake, "reset", lambda: "reset")
    note(rig.fake.container, "unmap_dma", unmapped)
    note(rig.fake, "close", lambda: "closed")
    return said


def test_the_rings_end_before_their_mapping_and_that_before_the_device(rig: Rig, told: list[str]) -> None:
    rig.driver.finish(rig.nop())
    rig.driver.close()
    assert told == ["unmapped", "closed"]


def test_a_device_that_does_not_rest_is_reset_before_anything_is_taken_away(
    rig: Rig, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.agent.qat._REST_SECONDS", 0.0)
    rig.plan("hold")
    rig.driver.submit(*LOAD)
    rig.driver.close()
    assert told == ["reset", "unmapped", "closed"]
