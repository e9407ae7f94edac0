"""A ring that ends at the wrong moment, offsets that wrap, and what errors and interrupts leave in the registers."""

from __future__ import annotations

import pytest
from client import signalled
from qat_rig import (
    CONFIG,
    CRC32,
    DATA,
    EMPTY,
    EMPTY_RINGS,
    ERROR,
    ERROR_ADDRESS,
    HEAD,
    INTERRUPTS,
    NOP,
    REQUESTS,
    RESPONSES,
    SENT_INTERRUPTS,
    SENT_RESPONSES,
    STARTED_REQUESTS,
    STATUS,
    TAIL,
    Rig,
    pending,
    request,
    tell,
)

from harness.device.qat.misbehave import Plan
from harness.device.wire import Command

READY, BUSY, FATAL = 1, 2, 4
READ = int(Command.DMA_READ)


async def sending(rig: Rig) -> None:
    """One request is done, and its response is on its way: the client holds it."""
    client = rig.client
    client.serving = False
    rig.put(request(NOP))
    await rig.ring()
    await client.arrived(1)
    await client.answer(*client.held.pop())
    await client.arrived(2)


async def disable(rig: Rig, *rings: int) -> None:
    for ring in rings:
        await rig.client.put(CONFIG + 4 * ring, 0)


# ---- a ring that ends


@pytest.mark.parametrize("ring", [0, 1])
def test_no_request_begins_when_a_ring_was_disabled_while_the_requests_were_read(ring: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        client.serving = False
        rig.put(request(CRC32, (DATA, 8)))
        await rig.ring()
        await client.arrived(1)
        await disable(rig, ring)
        await client.serve()
        await rig.idle()
        assert client.asked == [(READ, REQUESTS, 64)]
        assert await client.get(STARTED_REQUESTS, 8) == 0

    tell(story)


def test_a_response_to_the_old_rings_is_none_in_the_new_ones() -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await sending(rig)
        await disable(rig, 0, 1)
        await rig.rings()
        await client.serve()
        await rig.idle()
        assert await client.get(SENT_RESPONSES, 8) == 1
        assert await client.get(TAIL + 4) == 0
        client.poke(RESPONSES, EMPTY)
        assert (await rig.do(request(NOP, opaque=9))).opaque == 9
        await rig.idle()
        assert await client.get(TAIL + 4) == 32

    tell(story)


@pytest.mark.parametrize("ring", [0, 1])
def test_no_interrupt_comes_of_a_ring_that_was_disabled(event: int, ring: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await client.interrupts(1, event)
        await client.put(INTERRUPTS, 2)
        await sending(rig)
        await disable(rig, ring)
        await client.serve()
        await rig.idle()
        assert client.peek(RESPONSES, 32) != EMPTY
        assert pending(event) == await client.get(SENT_INTERRUPTS, 8) == 0

    tell(story)


# ---- offsets


def test_the_responses_tail_begins_anew_at_the_end_of_the_ring() -> None:
    async def story(rig: Rig) -> None:
        tails = []
        for _ in range(4):
            await rig.do(request(NOP))
            await rig.idle()
            tails.append(await rig.client.get(TAIL + 4))
        assert tails == [32, 0, 32, 0]

    tell(story, log2=1)


def test_a_driver_may_take_a_response_before_the_device_knows_that_it_has_arrived() -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await sending(rig)
        assert await client.get(TAIL + 4) == 0
        await client.put(HEAD + 4, 32)
        assert await client.get(STATUS) == READY | BUSY
        assert await client.get(ERROR) == 0
        await client.serve()
        await rig.idle()
        assert await client.get(HEAD + 4) == await client.get(TAIL + 4) == 32

    tell(story)


def test_a_driver_may_not_take_more_than_was_sent() -> None:
    async def story(rig: Rig) -> None:
        await sending(rig)
        await rig.client.put(HEAD + 4, 64)
        assert await rig.client.get(STATUS) & FATAL
        assert await rig.client.get(ERROR_ADDRESS, 8) == 64
        await rig.client.serve()

    tell(story)


def test_each_ring_that_is_empty_has_its_own_bit() -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        assert await client.get(EMPTY_RINGS) == 0b11
        rig.put(request(NOP))
        await rig.ring()
        await rig.take(tell=False)
        await rig.idle()
        assert await client.get(EMPTY_RINGS) == 0b01, "nobody has said that the response was taken"
        await client.put(HEAD + 4, 32)
        await disable(rig, 1)
        rig.put(request(NOP))
        await rig.ring()
        assert await client.get(EMPTY_RINGS) == 0b10

    tell(story)


# ---- errors and interrupts


def test_the_first_cause_stays(event: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await client.interrupts(0, event)
        await client.put(INTERRUPTS, 1)
        await client.put(TAIL, 65)
        await client.put(CONFIG + 4, 1 << 31 | 5)
        assert (await client.get(ERROR), await client.get(ERROR_ADDRESS, 8)) == (3, 65)
        assert pending(event) == await client.get(SENT_INTERRUPTS, 8) == 1

    tell(story)


@pytest.mark.parametrize("vector", [0, 1])
def test_interrupts_count_that_both_the_driver_and_the_client_have_switched_on(event: int, vector: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client

        async def sent(enable: int) -> int:
            await client.put(INTERRUPTS, enable)
            if vector:
                await rig.do(request(NOP))
                await rig.idle()
            else:
                await client.put(TAIL, 65)
                await rig.flr()
                await rig.rings()
            return await client.get(SENT_INTERRUPTS, 8)

        assert await sent(0b11) == 0, "there is no eventfd"
        await client.interrupts(vector, event)
        assert await sent(0b11 ^ 1 << vector) == pending(event) == 0
        assert await sent(1 << vector) == pending(event) == 1

    tell(story)


def test_the_lost_interrupt_is_that_of_the_request_and_not_the_one_for_room(event: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await client.interrupts(1, event)
        await client.put(INTERRUPTS, 2)
        rig.put(request(NOP))
        await rig.ring()
        await rig.take(tell=False)
        await rig.idle()
        assert pending(event) == 1
        rig.model.misbehaviour.add(Plan("lose_interrupt"))
        rig.put(request(NOP, opaque=8))
        await rig.ring()
        assert await signalled(event) == 1, "it tells that it waits"
        await client.put(HEAD + 4, 32)
        assert (await rig.take()).opaque == 8
        await rig.idle()
        assert pending(event) == 0
        await rig.do(request(NOP))
        assert await signalled(event) == 1, "one was lost"

    tell(story, log2=1)
