"""Requests that are delayed or held: what waits for what, on a recording DMA engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from test_misbehaviour_plans import Recorder

from harness.device.qat.memory import StubMemory
from harness.device.qat.misbehave import Misbehaviour, Plan


def test_a_delayed_request_waits_once_before_its_first_access(monkeypatch: pytest.MonkeyPatch) -> None:
    own, state, slept = Recorder(), Misbehaviour(), []

    async def sleep(seconds: float) -> None:
        slept.append((seconds, list(own.done)))

    async def story() -> None:
        memory = StubMemory(own, Plan("delay", milliseconds=250), state)
        await memory.list(0x100, 32)
        await memory.read(0x1000, 8)
        await memory.write(0x2000, bytes(8))

    monkeypatch.setattr("harness.device.qat.memory.asyncio", SimpleNamespace(sleep=sleep))
    asyncio.run(story())
    assert slept == [(0.25, [("read", 0x100, 32, "")])]
    assert own.done[1:] == [("read", 0x1000, 8, "delay"), ("write", 0x2000, 8, "delay")]


def test_a_release_waits_for_the_request_that_is_held_and_for_none_before_it() -> None:
    own, state = Recorder(), Misbehaviour()

    async def request(iova: int) -> None:
        memory = StubMemory(own, state.take(), state)
        await memory.read(iova, 8)
        for _ in range(100):  # more turns than a release takes that waits for nothing
            await asyncio.sleep(0)
        await memory.write(iova, bytes(8))
        state.remember()

    async def story() -> None:
        await request(0x1000)
        state.add(Plan("hold"))
        held = asyncio.ensure_future(request(0x2000))
        await state.release()
        assert own.done[2:] == [("read", 0x2000, 8, "hold"), ("write", 0x2000, 8, "hold")]
        await held

    asyncio.run(story())
