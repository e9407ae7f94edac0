"""What a request's DMA becomes when the stub has been told to do it wrong; on a recording DMA engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, get_args

import pytest

from harness.device.connection import Gone
from harness.device.dma import PAGE, Dma, DmaError
from harness.device.mirror import Mirror
from harness.device.qat import misbehave
from harness.device.qat.memory import WRONG_BYTE, StubMemory
from harness.device.qat.misbehave import HOWS, Misbehaviour, Plan
from harness.device.wire import Access
from harness.scenario.args_device import Misbehave

Access_ = tuple[str, int, int, str]


class Recorder(Dma):
    """Notes what is asked of it; memory is full of ones."""

    def __init__(self, *, gone: bool = False) -> None:
        super().__init__(Mirror(), lambda: True)
        self.done: list[Access_] = []
        self.gone = gone

    async def read(self, iova: int, size: int, note: str = "") -> bytes:
        self._note("read", iova, size, note)
        return b"\1" * size

    async def write(self, iova: int, data: bytes, note: str = "") -> None:
        self._note("write", iova, len(data), note)

    def _note(self, what: str, iova: int, size: int, note: str) -> None:
        if self.gone:
            raise Gone("there is no client")
        self.done.append((what, iova, size, note))


def one_request(how: str, state: Misbehaviour | None = None, iova: int = 0x1000, **more: Any) -> list[Access_]:
    """A copy of 16 bytes from ``iova`` to 0x8000 after it; gives what was done."""
    own = Recorder()

    async def story() -> None:
        found = state or Misbehaviour()
        found.add(Plan(how, **more))  # type: ignore[arg-type]
        memory = StubMemory(own, found.take(), found)
        await memory.write(iova + 0x8000, await memory.read(iova, 16))
        await memory.list(0x100, 32)
        found.remember()

    asyncio.run(story())
    assert own.done[-1] == ("read", 0x100, 32, ""), "scatter lists are always read rightly"
    return own.done[:-1]


RIGHT = [("read", 0x1000, 16, ""), ("write", 0x9000, 16, "")]


@pytest.mark.parametrize("how", ["", "complete_twice", "lose_interrupt", "stop_answering", "stale_address"])
def test_what_does_not_concern_the_data_leaves_it_alone(how: str) -> None:
    assert one_request(how) == RIGHT


def test_off_by_one_page() -> None:
    assert one_request("next_page") == [
        ("read", 0x1000 + PAGE, 16, "next_page"),
        ("write", 0x9000 + PAGE, 16, "next_page"),
    ]


def test_there_is_no_page_behind_the_last_one() -> None:
    last = (1 << 64) - PAGE
    state = Misbehaviour()
    state.add(Plan("next_page"))
    own = Recorder()
    asyncio.run(StubMemory(own, state.take(), state).write(last, b"x"))
    assert own.done == [("write", last, 1, "")]


def test_bytes_are_written_where_they_should_be_read() -> None:
    done = one_request("write_instead_of_read")
    assert done == [("write", 0x1000, 16, "write_instead_of_read"), ("write", 0x9000, 16, "")]
    assert asyncio.run(StubMemory(Recorder(), Plan("write_instead_of_read"), Misbehaviour()).read(0, 3)) == bytes(
        [WRONG_BYTE] * 3
    )


def test_another_function_does_the_dma() -> None:
    other = Recorder()
    assert one_request("wrong_requester", through=other) == []
    assert other.done == [("read", 0x1000, 16, "wrong_requester"), ("write", 0x9000, 16, "wrong_requester")]


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_as_a_function_that_is_gone_it_is_refused(access: Access) -> None:
    memory = StubMemory(Recorder(), Plan("wrong_requester", through=Recorder(gone=True)), Misbehaviour())
    with pytest.raises(DmaError) as refused:
        asyncio.run(_any(memory.read(0x2000, 8) if access is Access.READ else memory.write(0x2000, bytes(8))))
    assert (refused.value.transfer.access, refused.value.iova) == (access, 0x2000)


def test_without_a_client_of_its_own_there_is_no_answer() -> None:
    with pytest.raises(Gone):
        asyncio.run(StubMemory(Recorder(gone=True), Plan(), Misbehaviour()).read(0, 1))


async def _any(work: Coroutine[Any, Any, object]) -> None:
    await work


def test_stale_addresses_are_those_of_the_request_before_access_by_access() -> None:
    state, own = Misbehaviour(), Recorder()

    async def request(how: str, *reads: int) -> None:
        state.add(Plan(how))  # type: ignore[arg-type]
        memory = StubMemory(own, state.take(), state)
        for iova in reads:
            await memory.read(iova, 8)
        state.remember()

    async def story() -> None:
        await request("", 0x1000, 0x2000)
        await request("stale_address", 0x5000, 0x6000, 0x7000)
        await request("stale_address", 0x8000)
        await request("")  # without data, so it leaves no address
        await request("stale_address", 0x9000)

    asyncio.run(story())
    where = [iova for _, iova, _, _ in own.done]
    # The third of three had nothing before it; a request that went wrong leaves the addresses that it was given.
    assert where[2:] == [0x1000, 0x2000, 0x7000, 0x5000, 0x8000]
    assert [note for _, _, _, note in own.done[2:]] == ["stale_address", "stale_address", "", *["stale_address"] * 2]


def test_plans_are_for_the_next_requests_one_at_a_time_and_a_reset_forgets_them() -> None:
    state = Misbehaviour()
    state.add(Plan("next_page"), 2)
    state.add(Plan("lose_interrupt"))
    assert [state.take().how for _ in range(4)] == ["next_page", "next_page", "lose_interrupt", ""]
    state.add(Plan("hold"))
    state.lose_interrupt = True
    state.clear()
    assert (state.take().how, state.lose_interrupt) == ("", False)


def test_every_kind_is_known() -> None:
    assert "" not in HOWS
    assert len(HOWS) == len(set(HOWS)) == 9
    assert get_args(Misbehave.model_fields["how"].annotation) == HOWS, "what a scenario may say"


# ---- hold


def test_a_held_request_waits_for_its_release_which_ends_with_its_data() -> None:
    async def story() -> list[str]:
        said: list[str] = []
        state, own = Misbehaviour(), Recorder()
        state.add(Plan("hold"), 2)

        async def request(name: str) -> None:
            memory = StubMemory(own, state.take(), state)
            await memory.read(0x1000, 8)
            await asyncio.sleep(0)
            await memory.write(0x2000, bytes(8))
            said.append(name)
            state.remember()

        async def both() -> None:
            await request("first")
            await request("second")

        async with asyncio.TaskGroup() as tasks:
            released = tasks.create_task(state.release())  # before the request is there
            await asyncio.sleep(0)
            assert not released.done()
            tasks.create_task(both())
            await released
            assert said == ["first"]
            for _ in range(5):
                await asyncio.sleep(0)
            assert said == ["first"], "one release is for one request"
            await state.release()
        return said

    assert asyncio.run(story()) == ["first", "second"]


def test_nothing_is_released_that_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misbehave, "HOLD_SECONDS", 0.01)
    state = Misbehaviour()
    with pytest.raises(ValueError, match="no request is held"):
        asyncio.run(state.release())
    state.add(Plan("hold"))
    with pytest.raises(ValueError, match="no request came"):
        asyncio.run(state.release())


def test_a_request_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(misbehave, "HOLD_SECONDS", 0.05)

    async def story() -> None:
        state = Misbehaviour()
        state.add(Plan("hold"))
        task = asyncio.get_running_loop().create_task(StubMemory(Recorder(), state.take(), state).read(0, 1))
        with pytest.raises(ValueError, match="did not come to its end"):
            await state.release()
        await task

    asyncio.run(story())
