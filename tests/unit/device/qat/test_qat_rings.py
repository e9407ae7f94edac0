"""Rings: order, room, wrapping, what a driver may write when, resets, interrupts, functions beside each other."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from client import served, signalled, within
from qat_rig import (
    CONFIG,
    COPY,
    CRC32,
    DATA,
    DONE,
    EMPTY,
    ERROR,
    ERROR_ADDRESS,
    FILL,
    HEAD,
    INTERRUPTS,
    LBASE,
    LISTS,
    NOP,
    REQUESTS,
    RESPONSES,
    STATUS,
    TAIL,
    UBASE,
    Rig,
    pending,
    request,
    tell,
)

from harness.device.qat.stub import QatPf, QatVf
from harness.device.wire import REGION_ACCESS, Command

READY, BUSY, FATAL = 1, 2, 4
A, B = DATA, DATA + 0x4_0000
READ, WRITE = int(Command.DMA_READ), int(Command.DMA_WRITE)


# ---- order and room


@pytest.mark.parametrize("log2", [1, 2, 3])
def test_both_rings_wrap_and_responses_stay_in_order(log2: int) -> None:
    async def story(rig: Rig) -> None:
        number = 0
        for round_ in range(20):
            batch = 1 + round_ % ((1 << log2) - 1)
            for one in range(batch):
                rig.put(request(NOP, opaque=number + one))
            await rig.ring()
            for one in range(batch):
                assert (await rig.take()).opaque == number + one
            number += batch
        assert await rig.client.get(0x40, 8) == await rig.client.get(0x48, 8) == number
        assert await rig.client.get(STATUS) == READY

    tell(story, log2=log2)


def test_a_response_that_nobody_took_is_never_overwritten(event: int) -> None:
    async def story(rig: Rig) -> None:
        await rig.client.interrupts(1, event)
        await rig.client.put(INTERRUPTS, 2)
        for number in range(3):
            rig.put(request(NOP, opaque=number))
        await rig.ring()
        for number in range(3):
            assert (await rig.take(tell=False)).opaque == number
        await rig.idle()
        assert pending(event) == 1
        rig.client.poke(RESPONSES, b"mine" * 8)
        for number in range(3, 6):
            rig.put(request(NOP, opaque=number))
        await rig.ring()
        assert await signalled(event) == 1, "it tells that it waits"
        assert await rig.client.get(STATUS) == READY | BUSY
        assert await rig.client.get(TAIL + 4) == 96
        assert rig.client.peek(RESPONSES, 32) == b"mine" * 8
        assert rig.client.peek(RESPONSES + 96, 32) == EMPTY
        await rig.client.put(HEAD + 4, 32)
        assert (await rig.take()).opaque == 3
        assert [(await rig.take()).opaque for _ in range(2)] == [4, 5]
        await rig.idle()

    tell(story, log2=2)


def test_a_doorbell_while_it_works(event: int) -> None:
    async def story(rig: Rig) -> None:
        await rig.client.interrupts(1, event)
        await rig.client.put(INTERRUPTS, 2)
        rig.client.serving = False
        rig.put(request(CRC32, (A, 8), opaque=1))
        await rig.ring()
        await rig.client.arrived(1)
        for number in (2, 3):
            rig.put(request(CRC32, (A, 8), opaque=number))
            await rig.ring()
        assert len(rig.client.asked) == 1
        assert await rig.client.get(STATUS) == READY | BUSY
        await rig.client.serve()
        assert [(await rig.take()).opaque for _ in range(3)] == [1, 2, 3]
        assert await signalled(event) == 1
        await rig.idle()
        assert pending(event) == 0, "one for all"

    tell(story)


def test_data_before_the_response_and_that_before_the_interrupt_and_the_next_request_meanwhile(event: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        await client.interrupts(1, event)
        await client.put(INTERRUPTS, 2)
        rig.put(request(COPY, (A, 8), (B, 8)))
        rig.put(request(CRC32, (A + 64, 8)))
        client.serving = False
        await rig.ring()
        expected = [
            [(READ, REQUESTS, 128)],
            [(READ, A, 8)],
            [(WRITE, B, 8)],
            [(WRITE, RESPONSES, 32), (READ, A + 64, 8)],
            [(WRITE, RESPONSES + 32, 32)],
        ]
        seen = 0
        for messages in expected:
            seen += len(messages)
            await client.arrived(seen)
            await client.get(STATUS)  # whatever else it sent would have come before this answer
            assert client.asked[seen - len(messages) :] == messages
            assert pending(event) == 0
            held, client.held = client.held, []
            for one in held:
                await client.answer(*one)
        assert await signalled(event) == 1

    tell(story)


def test_one_response_at_a_time_is_on_its_way() -> None:
    """So that none is written behind one that was refused."""

    async def story(rig: Rig) -> None:
        client = rig.client
        for number in range(3):
            rig.put(request(NOP, opaque=number))
        client.serving = False
        await rig.ring()
        await client.arrived(1)
        await client.unmap(RESPONSES, 0x1000)
        await client.answer(*client.held.pop())
        await client.arrived(2)
        await client.get(STATUS)
        assert client.asked[1:] == [(WRITE, RESPONSES, 32)]
        await client.serve()
        await rig.idle()
        assert client.asked[1:] == [(WRITE, RESPONSES, 32)]
        assert await client.get(ERROR) == 2

    tell(story)


# ---- what a driver may write when


def test_registers_that_are_the_devices_while_a_ring_is_enabled() -> None:
    async def story(rig: Rig) -> None:
        await rig.do(request(NOP))
        await rig.idle()
        for register, value in (
            (LBASE, REQUESTS),
            (LBASE + 4, RESPONSES),
            (UBASE, 0),
            (UBASE + 4, 0),
            (HEAD, 64),
            (TAIL + 4, 32),
        ):
            await rig.client.put(register, 0xFFFF_FFFF)
            assert await rig.client.get(register) == value
        for ring in (0, 4):
            await rig.client.put(CONFIG + ring, 4)
            await rig.client.put(LBASE + ring, 0x1234_0000)
            assert await rig.client.get(LBASE + ring) == 0x1234_0000
            assert await rig.client.get(CONFIG + ring) == 4

    tell(story)


@pytest.mark.parametrize(
    ("register", "value", "cause", "where"),
    [
        (TAIL, 65, 3, 65),
        (TAIL, 64 * 16, 3, 64 * 16),
        (TAIL, 0xFFFF_FFC0, 3, 0xFFFF_FFC0),
        (HEAD + 4, 16, 3, 16),
        (HEAD + 4, 32 * 16, 3, 32 * 16),
        (HEAD + 4, 32, 3, 32),  # there is no response that it could have taken
    ],
)
def test_an_offset_out_of_range_is_fatal(event: int, register: int, value: int, cause: int, where: int) -> None:
    async def story(rig: Rig) -> None:
        await rig.client.interrupts(0, event)
        await rig.client.put(INTERRUPTS, 1)
        await rig.client.put(register, value)
        await is_fatal(rig, cause, where)
        assert pending(event) == 1

    tell(story)


@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize("log2", [1, 3, 5, 31])
def test_another_size_for_a_ring_that_is_enabled_is_fatal(ring: int, log2: int) -> None:
    """Its head and tail lie in the ring that was enabled, so nothing may be read of a larger or smaller one."""

    async def story(rig: Rig) -> None:
        for _ in range(15):  # so that the next tail lies before the head
            await rig.do(request(NOP))
            await rig.client.put(CONFIG + 4 * ring, 1 << 31 | 4)
        await rig.idle()
        asked = len(rig.client.asked)
        await rig.client.put(CONFIG + 4 * ring, 1 << 31 | log2)
        assert await rig.client.get(CONFIG + 4 * ring) == 1 << 31 | 4
        rig.put(request(NOP))
        await rig.ring()
        await rig.client.get(STATUS)
        assert len(rig.client.asked) == asked
        await is_fatal(rig, 4, 1 << 31 | log2)

    tell(story)


@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize(
    ("writes", "cause", "where"),
    [
        ({CONFIG: 1 << 31}, 4, 1 << 31),
        ({CONFIG: 1 << 31 | 15}, 4, 1 << 31 | 15),
        ({CONFIG: 0xFFFF_FFFF}, 4, 0xFFFF_FFFF),
        ({UBASE: 0xFFFF_FFFF, LBASE: 0xFFFF_FFF0, CONFIG: 1 << 31 | 4}, 5, 0xFFFF_FFFF_FFFF_FFF0),
        ({HEAD: 8, CONFIG: 1 << 31 | 4}, 3, 8),
        ({TAIL: 0x1_0000, CONFIG: 1 << 31 | 4}, 3, 0x1_0000),
    ],
)
def test_a_ring_that_cannot_be_is_fatal(ring: int, writes: dict[int, int], cause: int, where: int) -> None:
    async def story(rig: Rig) -> None:
        await rig.client.put(CONFIG + 4 * ring, 0)
        for register, value in writes.items():
            await rig.client.put(register + 4 * ring, value)
        await is_fatal(rig, cause, where)

    tell(story)


async def is_fatal(rig: Rig, cause: int, where: int) -> None:
    """It says so, does nothing, and a reset brings it back."""
    client = rig.client
    assert await client.get(STATUS) == READY | FATAL
    assert (await client.get(ERROR), await client.get(ERROR_ADDRESS, 8)) == (cause, where)
    asked = len(client.asked)
    await client.put(CONFIG, 0)
    await client.put(CONFIG + 4, 0)
    await rig.rings()
    rig.put(request(NOP))
    await rig.ring()
    assert await client.get(STATUS) == READY | FATAL
    assert len(client.asked) == asked
    await rig.flr()
    assert await client.get(STATUS) == READY
    assert await client.get(ERROR) == await client.get(ERROR_ADDRESS, 8) == 0
    await rig.rings()
    assert (await rig.do(request(NOP))).code == DONE


def test_a_request_ring_that_cannot_be_read_is_fatal() -> None:
    async def story(rig: Rig) -> None:
        await rig.client.unmap(REQUESTS, 0x1000)
        await rig.ring()
        await rig.client.put(TAIL, 64)
        await rig.idle()
        await rig.client.map(REQUESTS, 0x1000)
        await is_fatal(rig, 1, REQUESTS)

    tell(story)


def test_a_response_ring_that_cannot_be_written_is_fatal_after_the_work() -> None:
    async def story(rig: Rig) -> None:
        await rig.client.unmap(RESPONSES, 0x1000)
        for number in range(3):
            rig.put(request(FILL, destination=(A + 8 * number, 8), operand=1))
        await rig.ring()
        await rig.idle()
        assert await rig.client.get(0x48, 8) == 0
        assert await rig.client.get(TAIL + 4) == 0
        assert rig.client.peek(A, 8) == b"\1" * 8
        assert rig.client.peek(A + 16, 8) == bytes(8), "the third one did not begin"
        await rig.client.map(RESPONSES, 0x1000)
        await is_fatal(rig, 2, RESPONSES)

    tell(story)


# ---- a ring that goes, and resets


@pytest.mark.parametrize("ring", [0, 1])
def test_disabling_a_ring_ends_the_work_after_the_request_and_without_a_response(ring: int) -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        client.serving = False
        for number in range(2):
            rig.put(request(COPY, (A, 8), (B + 8 * number, 8), opaque=number))
        client.poke(A, b"12345678")
        await rig.ring()
        await client.arrived(1)
        await client.answer(*client.held.pop())
        await client.arrived(2)  # the first copy reads
        await client.put(CONFIG + 4 * ring, 0)
        assert await client.get(STATUS) == READY | BUSY
        await client.serve()
        await rig.idle()
        assert client.peek(B, 16) == b"12345678" + bytes(8)
        assert client.peek(RESPONSES, 32) == EMPTY
        assert await client.get(0x40, 8) == 1
        await client.put(CONFIG + 4 * (1 - ring), 0)
        await rig.rings(3)
        assert (await rig.do(request(NOP, opaque=9))).opaque == 9

    tell(story)


def test_a_ring_that_is_enabled_anew_while_it_works_is_served_afterwards() -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        client.serving = False
        rig.put(request(CRC32, (A, 8), opaque=1))
        await rig.ring()
        await client.arrived(1)
        await client.answer(*client.held.pop())
        await client.arrived(2)  # it reads the data
        for ring in (0, 4):
            await client.put(CONFIG + ring, 0)
        await rig.rings(5)
        rig.put(request(NOP, opaque=2))
        await rig.ring()
        await client.serve()
        assert (await rig.take()).opaque == 2

    tell(story)


def test_a_ring_that_is_enabled_anew_while_a_response_goes_out_keeps_its_head() -> None:
    async def story(rig: Rig) -> None:
        client = rig.client
        rig.put(request(NOP))
        # Between the response and what follows it.
        await rig.read_and_write((CONFIG, 0), (HEAD, 0), (TAIL, 0), (CONFIG, 1 << 31 | 4))
        await client.serve()
        await rig.idle()
        assert [await client.get(register) for register in (HEAD, TAIL)] == [0, 0]

    tell(story)


def test_waiting_for_room_ends_with_the_ring() -> None:
    async def story(rig: Rig) -> None:
        for _ in range(2):
            rig.put(request(NOP))
            await rig.ring()
            while (await rig.client.get(0x40, 8)) < (await rig.client.get(TAIL)) // 64:
                await asyncio.sleep(0)
        assert await rig.client.get(STATUS) == READY | BUSY
        await rig.client.put(CONFIG + 4, 0)
        await rig.idle()
        assert rig.client.peek(RESPONSES + 32, 32) == EMPTY

    async def full(rig: Rig) -> None:
        await rig.client.put(CONFIG + 4, 0)
        await rig.client.put(CONFIG + 4, 1 << 31 | 1)
        await story(rig)

    tell(full)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_nothing_of_the_old_life_is_asked_for_after_a_reset(steps: int) -> None:
    """Each time one message further: the request, the source, the destination, the response."""

    async def story(rig: Rig) -> None:
        client = rig.client
        client.serving = False
        for number in range(3):
            rig.put(request(COPY, (A, 8), (B, 8), opaque=number))
        await rig.ring()
        await client.arrived(1)
        for step in range(1, steps):
            await client.answer(*client.held.pop(0))
            await client.arrived(step + 1)
        before = list(client.asked)
        await rig.flr()
        await client.serve()
        assert await client.get(STATUS) == READY
        assert client.asked == before
        client.poke(RESPONSES, EMPTY)
        await rig.rings()
        assert (await rig.do(request(NOP, opaque=77))).opaque == 77
        await rig.idle()
        assert await client.get(0x70, 8) == 1
        assert await client.get(0x40, 8) == (2 if steps > 1 else 1) + (steps > 3), "counters go on"

    tell(story)


def test_a_new_life_that_begins_before_the_old_one_knows_of_its_end() -> None:
    """The driver's writes come in one go, so the old task has not run again when the new one begins."""

    async def story(rig: Rig) -> None:
        client = rig.client
        client.serving = False
        rig.put(request(CRC32, (A, 8)))
        await rig.ring()
        await client.arrived(1)
        numbers = [await client.send(Command.DEVICE_RESET), await write(rig, 4, 6, 2, region=7)]
        for ring, base in ((0, REQUESTS), (4, RESPONSES)):
            numbers += [await write(rig, LBASE + ring, base), await write(rig, CONFIG + ring, 1 << 31 | 4)]
        numbers.append(await write(rig, TAIL, 64))
        for number in numbers:
            assert (await client.reply(number)).error == 0
        await client.arrived(2)
        assert await client.get(STATUS) == READY | BUSY
        await client.serve()
        assert (await rig.take()).code == DONE
        await rig.idle()

    async def write(rig: Rig, offset: int, value: int, size: int = 4, region: int = 0) -> int:
        body = REGION_ACCESS.pack(offset, region, size) + value.to_bytes(size, "little")
        return await rig.client.send(Command.REGION_WRITE, body)

    tell(story)


def test_a_client_that_goes_in_the_middle_leaves_nothing_behind() -> None:
    async def whole() -> None:
        model = QatPf("qat")
        async with served(model) as (server, client):
            for base in (REQUESTS, RESPONSES):
                await client.map(base, 0x1000)
            rig = Rig(client, model)
            await rig.rings()
            client.serving = False
            rig.put(request(CRC32, (A, 8)))
            await rig.ring()
            await client.arrived(1)
            await client.close()

            async def rest() -> None:
                while server.connected:
                    await asyncio.sleep(0)

            await within(rest())
            await asyncio.sleep(0)
            assert model.failure is None
            assert model.bars[0].read(STATUS, 4) == bytes([READY, 0, 0, 0])

    asyncio.run(whole())


# ---- functions


def test_a_functions_own_bytes_take_memory_where_they_were_written_only() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    models = [QatPf(str(number)) for number in range(8)]
    assert all(len(model.local) == 16 << 20 for model in models)
    assert resident() - before < 16 << 20


def test_a_reset_leaves_zeros_and_frees_what_was_written() -> None:
    model = QatPf("qat")
    old = model.local
    old[5:8] = b"old"
    asyncio.run(reset(model))
    assert old.closed
    assert model.local[:16] == bytes(16)


async def reset(model: QatPf) -> None:
    model.reset()


def test_two_functions_know_nothing_of_each_other() -> None:
    async def whole() -> None:
        pf, vf = QatPf("pf"), QatVf("vf")
        async with served(pf) as (_, one), served(vf) as (_, other):
            rigs = [Rig(one, pf), Rig(other, vf)]
            for rig in rigs:
                for base in (REQUESTS, RESPONSES, LISTS, DATA):
                    await rig.client.map(base, 0x8000)
                await rig.rings()
            one.poke(A, b"one")
            other.poke(A, b"other")
            for number in range(10):
                for rig in rigs:
                    rig.put(request(COPY, (A, 5), (A + 100, 5), opaque=number))
                    await rig.ring()
                assert [(await rig.take()).opaque for rig in rigs] == [number] * 2
            await rigs[0].flr()
            assert (await rigs[1].do(request(NOP))).code == DONE
            assert await one.get(0x70, 8) == 1
            assert await other.get(0x70, 8) == 0
            assert other.peek(A + 100, 5) == b"other"
            assert (await one.get(0, region=7), await other.get(0, region=7)) == (0x4940_8086, 0x4941_8086)

    asyncio.run(whole())
