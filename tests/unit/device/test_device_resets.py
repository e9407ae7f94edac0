"""Hooks and tasks that raise, resets while the device works, interrupts."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from client import CONFIG, Client, within
from sample import BREAK, COPY, DONE, GO, RAISE, SIZE, STUBBORN, WAIT, Sample, addresses
from telling import still_works, tell

from harness.device import wire
from harness.device.server import FunctionServer
from harness.device.wire import Command

# ---- hooks and tasks that raise


def test_a_hook_that_raises_is_told_and_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        assert await client.ask(Command.REGION_READ, wire.REGION_ACCESS.pack(BREAK, 0, 4)) == (errno.EIO, b"")
        assert repr(server.model.failure) == "LookupError('a hook that reads')"
        await client.put(BREAK, 1)
        await still_works(client)

    tell(story)
    said = capfd.readouterr().err
    assert "a hook that reads" in said
    assert "a hook that writes" in said
    assert "in broken" in said, "the traceback names the place"


def test_a_hook_that_is_told_of_a_cancelled_task_is_a_hook_that_raises() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        model = server.model
        model.cancelled = True  # type: ignore[attr-defined]
        for ask in (
            client.ask(Command.REGION_READ, wire.REGION_ACCESS.pack(BREAK, 0, 4)),
            client.ask(Command.REGION_WRITE, wire.REGION_ACCESS.pack(BREAK, 0, 4) + bytes(4)),
            client.ask(Command.DEVICE_RESET),
        ):
            model.failure = None
            await ask
            await still_works(client)
            assert isinstance(model.failure, asyncio.CancelledError)
        model.cancelled = False  # type: ignore[attr-defined]

    tell(story)


def test_a_hook_that_always_raises_is_told_a_hundred_times(capfd: pytest.CaptureFixture[str]) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        for _ in range(150):
            await client.ask(Command.REGION_READ, wire.REGION_ACCESS.pack(BREAK, 0, 4))

    tell(story)
    said = capfd.readouterr().err
    assert said.count("the device model raised") == 100
    assert said.count("Traceback") == 1
    assert said.count("no more of them are told") == 1


def test_a_task_that_raises_is_told_and_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.put(GO, RAISE)
        while not await client.get(DONE):
            pass
        assert isinstance(server.model.failure, ZeroDivisionError)
        await still_works(client)

    tell(story)
    said = capfd.readouterr().err
    assert "a task that raises" in said
    assert "in work" in said


# ---- resets


async def flr(client: Client) -> None:
    """Start a Function Level Reset, as a driver does: one bit of the PCI Express capability."""
    await client.write(CONFIG, 0x49, b"\xa8")


async def device_reset(client: Client) -> None:
    assert (await client.ask(Command.DEVICE_RESET)).error == 0


@pytest.mark.parametrize("reset", [flr, device_reset])
def test_a_reset_ends_tasks_before_anything_else_is_done(reset: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(0x1000, 0x1000)
        await client.put(GO, WAIT)
        await client.put(SIZE, 0)
        # In one piece, so that the server has the next command at hand when it has done the reset.
        parts = [wire.message(60000, Command.DEVICE_RESET)]
        if reset is flr:
            parts = [wire.message(60000, Command.REGION_WRITE, wire.REGION_ACCESS.pack(0x49, CONFIG, 1) + b"\xa8")]
        parts.append(wire.message(60001, Command.REGION_READ, wire.REGION_ACCESS.pack(DONE, 0, 4)))
        for number in (60000, 60001):
            client._replies[number] = asyncio.get_running_loop().create_future()
        await client.raw(b"".join(parts))
        assert (await client.reply(60000)).error == 0
        assert (await client.reply(60001)).body[16:] == (1).to_bytes(4, "little"), "the task's end comes before"
        assert server.model.log == ["begun", "reset", "ended"]  # type: ignore[attr-defined]
        assert await client.get(SIZE) == 64
        assert not server.model.config.bus_master
        assert len(server.model.mirror) == 1, "mappings are the client's"

    tell(story)


def test_a_task_that_does_not_end_is_the_models_error_and_the_client_is_served(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.put(GO, STUBBORN)
        await device_reset(client)
        await still_works(client)
        assert "go on after a reset" in str(server.model.failure)
        server.model.release.set()  # type: ignore[attr-defined]

    monkeypatch.setattr("harness.device.model._SETTLE_SECONDS", 0.01)
    tell(story)
    assert "go on after a reset" in capfd.readouterr().err


@pytest.mark.parametrize("reset", [flr, device_reset])
@pytest.mark.parametrize("works", [False, True])
def test_a_task_that_begins_with_the_reset_goes_on(
    reset: Callable[[Client], Coroutine[Any, Any, None]], works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.device.model._SETTLE_SECONDS", 0.01)

    async def story(server: FunctionServer, client: Client) -> None:
        if works:
            await client.put(GO, WAIT)
        await reset(client)
        assert await client.get(DONE) == works
        assert server.model.failure is None
        assert not server.model.settling
        assert server.model.running == 1  # type: ignore[attr-defined]
        await reset(client)
        assert server.model.running == 1, "a reset ends that of the life before"  # type: ignore[attr-defined]

    assert tell(story, Waking("w")).failure is None


class Waking(Sample):
    """Begins to work by itself after a reset, and goes on until the next."""

    running = 0

    def on_reset(self) -> None:
        super().on_reset()
        self.start(self.wake())

    async def wake(self) -> None:
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


@pytest.mark.parametrize("reset", [flr, device_reset])
def test_a_late_reply_to_what_a_reset_ended_is_no_error(reset: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(0x1000, 0x2000)
        client.poke(0x1000, b"new!")
        client.serving = False
        await client.write(0, 0, addresses(0x1000, 0x2000, 64))
        await client.put(GO, COPY)
        await client.arrived(1)
        await reset(client)
        await client.bus_master()
        await client.write(0, 0, addresses(0x1000, 0x2000, 4))
        await client.put(GO, COPY)
        await client.arrived(2)
        assert client.held[0][0].id != client.held[1][0].id, "the reply on the way keeps its number"
        await client.serve()
        await client.arrived(3)
        await still_works(client)
        while not await client.get(DONE):
            pass
        assert client.peek(0x2000, 8) == b"new!" + bytes(4)
        log, _ = server.model.dma.log.news()
        assert [(one["access"], one["error"]) for one in log] == [("read", "ECANCELED"), ("read", ""), ("write", "")]

    tell(story)


def test_a_client_that_goes_away_while_it_owes_us_a_reply() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        await client.map(0x1000, 0x2000)
        client.serving = False
        await client.write(0, 0, addresses(0x1000, 0x2000, 64))
        await client.put(GO, COPY)
        await client.arrived(1)
        lost = asyncio.Event()
        server.on_lost = lost.set
        await client.close()
        await within(lost.wait())
        while server.model.settling:
            await asyncio.sleep(0)
        assert server.model.log[-1] == "ended"  # type: ignore[attr-defined]

    assert tell(story).failure is None


# ---- interrupts


def test_interrupts_are_switched_on_and_off_and_tried_out() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        one, two = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
        assert (await client.interrupts(1, one, two)).error == 0
        assert [server.model.interrupt(vector) for vector in range(5)] == [False, True, True, False, False]
        assert (os.eventfd_read(one), os.eventfd_read(two)) == (1, 1)
        await client.ask(Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x21, 2, 2, 1))
        assert os.eventfd_read(two) == 1
        await client.ask(Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x24, 2, 1, 1))
        assert [server.model.interrupt(vector) for vector in (1, 2)] == [False, True]
        await client.ask(Command.DEVICE_SET_IRQS, wire.SET_IRQS.pack(20, 0x21, 2, 0, 0))
        assert not server.model.interrupt(2)
        os.close(one)
        os.close(two)

    tell(story)


def test_an_interrupt_that_nobody_takes_never_blocks() -> None:
    async def story(server: FunctionServer, client: Client) -> None:
        event = os.eventfd(0)
        await client.interrupts(0, event)
        os.eventfd_write(event, (1 << 64) - 2)
        assert server.model.interrupt(0)
        os.close(event)

    tell(story)
