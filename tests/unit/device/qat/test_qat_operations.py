"""Every operation against a plain model, and every request that makes no sense."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from qat_rig import (
    COMPARE,
    COPY,
    CRC32,
    DATA,
    DESTINATION_LIST,
    DONE,
    FILL,
    INVALID,
    LISTS,
    LOAD,
    NOP,
    READ_REFUSED,
    SOURCE_LIST,
    STORE,
    WRITE_REFUSED,
    Answer,
    Rig,
    request,
    tell,
)

LARGE = 16 << 20
LAST = (1 << 64) - 1
A, B = DATA, DATA + 0x4_0000
UNMAPPED = 0x90_0000


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_nop() -> None:
    async def story(rig: Rig) -> None:
        assert await rig.do(request(NOP, opaque=0x1234_5678_9ABC_DEF0)) == (DONE, 0, 0, 0x1234_5678_9ABC_DEF0)

    tell(story)


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 4096), (4095, 2), (13, 70_001)])
def test_copy(offset: int, size: int) -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(A + offset, noise(size))
        assert await rig.do(request(COPY, (A + offset, size), (B + 5, size))) == (DONE, size, 0, 7)
        assert rig.client.peek(B, size + 10) == bytes(5) + noise(size) + bytes(5)

    tell(story)


def test_copy_of_more_than_is_held_at_a_time() -> None:
    async def story(rig: Rig) -> None:
        size = (2 << 20) + 4321
        rig.client.poke(A + 1, noise(size))
        assert (await rig.do(request(COPY, (A + 1, size), (A + 0x30_0000, size)))).result == size
        assert rig.client.peek(A + 0x30_0000, size + 1) == noise(size) + b"\0"

    tell(story, data=0x60_0000)


def test_fill() -> None:
    async def story(rig: Rig) -> None:
        assert await rig.do(request(FILL, destination=(A + 3, 5000), operand=0xA5)) == (DONE, 5000, 0, 7)
        assert rig.client.peek(A, 5010) == bytes(3) + b"\xa5" * 5000 + bytes(7)

    tell(story)


def test_crc32_is_that_of_zlib() -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(A, noise(9999))
        assert await rig.do(request(CRC32, (A, 9999))) == (DONE, zlib.crc32(noise(9999)), 0, 7)
        rig.client.poke(A, b"123456789")
        assert (await rig.do(request(CRC32, (A, 9)))).result == 0xCBF4_3926  # the check value of CRC-32

    tell(story)


@pytest.mark.parametrize("at", [0, 1, 4095, 4096, 65_000, 69_999, None])
def test_compare(at: int | None) -> None:
    async def story(rig: Rig) -> None:
        data = bytearray(noise(70_000))
        rig.client.poke(A, bytes(data))
        if at is not None:
            data[at] ^= 1
        rig.client.poke(B + 1, bytes(data))
        assert await rig.do(request(COMPARE, (A, 70_000), (B + 1, 70_000))) == (DONE, LAST if at is None else at, 0, 7)

    tell(story)


@pytest.mark.parametrize("offset", [0, 1, LARGE - 5000])
def test_load_and_store(offset: int) -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(A, noise(5000))
        assert await rig.do(request(LOAD, (A, 5000), operand=offset)) == (DONE, 5000, 0, 7)
        assert await rig.do(request(STORE, destination=(B, 5000), operand=offset)) == (DONE, 5000, 0, 7)
        assert rig.client.peek(B, 5000) == noise(5000)
        await rig.flr()
        await rig.rings()
        assert (await rig.do(request(STORE, destination=(B, 5000), operand=offset))).code == DONE
        assert rig.client.peek(B, 5000) == bytes(5000), "a reset leaves zeros"

    tell(story)


def test_lists_on_both_sides() -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(A, noise(0x4_0000))
        pieces = [(A + 100, 1), (A + 0x3000, 4096), (A + 7, 5000)]
        whole = b"".join(rig.client.peek(*piece) for piece in pieces)
        source = rig.listed(pieces), 0
        there = [(B + 1, 4097), (B + 0x8000, 5000)]
        destination = rig.listed(there), 0
        both = SOURCE_LIST | DESTINATION_LIST
        assert await rig.do(request(COPY, source, destination, flags=both)) == (DONE, 9097, 0, 7)
        assert b"".join(rig.client.peek(*piece) for piece in there) == whole
        assert (await rig.do(request(CRC32, source, flags=SOURCE_LIST))).result == zlib.crc32(whole)
        assert (await rig.do(request(COMPARE, source, destination, flags=both))).result == LAST

    tell(story)


def test_the_longest_list() -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(A, noise(255))
        pieces = [(A + 254 - number, 1) for number in range(255)]
        assert (await rig.do(request(COPY, (rig.listed(pieces), 0), (B, 255), flags=SOURCE_LIST))).result == 255
        assert rig.client.peek(B, 255) == noise(255)[::-1]

    tell(story)


# ---- refused


def test_a_refused_read_names_its_first_address_and_writes_nothing() -> None:
    async def story(rig: Rig) -> None:
        end = DATA + 0x10_0000
        answer = await rig.do(request(COPY, (end - 100, 200), (B, 200)))
        assert answer == (READ_REFUSED, 0, end, 7)
        assert rig.client.peek(B, 200) == bytes(200)

    tell(story)


def test_a_refused_write_names_its_first_address_and_leaves_what_came_before() -> None:
    async def story(rig: Rig) -> None:
        pieces = [(A, 10), (UNMAPPED + 17, 10), (A + 100, 10)]
        place = rig.listed(pieces)
        answer = await rig.do(request(FILL, destination=(place, 0), operand=9, flags=DESTINATION_LIST))
        assert answer == (WRITE_REFUSED, 0, UNMAPPED + 17, 7)
        assert rig.client.peek(A, 110) == b"\x09" * 10 + bytes(100)

    tell(story)


@pytest.mark.parametrize("opcode", [CRC32, LOAD, COMPARE, COPY])
def test_a_list_that_cannot_be_read_is_refused_there(opcode: int) -> None:
    async def story(rig: Rig) -> None:
        other = (B, 8) if opcode in (COMPARE, COPY) else (0, 0)
        assert await rig.do(request(opcode, (UNMAPPED, 0), other, flags=SOURCE_LIST)) == (READ_REFUSED, 0, UNMAPPED, 7)

    tell(story)


def test_a_read_only_page_is_read_and_not_written() -> None:
    async def story(rig: Rig) -> None:
        await rig.client.map(0x50_0000, 0x1000, 1)
        assert (await rig.do(request(CRC32, (0x50_0000, 4096)))).code == DONE
        assert await rig.do(request(FILL, destination=(0x50_0010, 9))) == (WRITE_REFUSED, 0, 0x50_0010, 7)

    tell(story)


# ---- invalid


def short(value: int | bytes) -> str:
    return str(value) if isinstance(value, int) else f"{zlib.crc32(value):x}"


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


GOOD = request(COPY, (A, 8), (B, 8))
OPCODE, FLAGS, RESERVED, SIZE, BUFFERS, ADDRESS, OPERAND, UNEQUAL = range(1, 9)


@pytest.mark.parametrize(
    ("reason", "entry"),
    [
        (OPCODE, request(7)),
        (OPCODE, request(255, (A, 8), (B, 8))),
        (FLAGS, changed(GOOD, 1, 4)),
        (FLAGS, changed(GOOD, 1, 0x80)),
        (FLAGS, request(NOP, flags=SOURCE_LIST)),
        (FLAGS, request(CRC32, (A, 8), flags=DESTINATION_LIST)),
        (FLAGS, request(FILL, destination=(A, 8), flags=SOURCE_LIST)),
        *[(RESERVED, changed(GOOD, at, 1)) for at in (2, 3, 4, 7, 48, 63)],
        (RESERVED, request(NOP, (A, 0))),
        (RESERVED, request(NOP, destination=(0, 1))),
        (RESERVED, request(CRC32, (A, 8), (B, 0))),
        (RESERVED, request(STORE, (0, 8), (B, 8))),
        (RESERVED, request(CRC32, (LISTS, 1), flags=SOURCE_LIST)),
        (RESERVED, request(NOP, operand=1)),
        (RESERVED, request(COPY, (A, 8), (B, 8), operand=1)),
        (OPERAND, request(FILL, destination=(A, 8), operand=256)),
        (OPERAND, request(LOAD, (A, 8), operand=LARGE - 7)),
        (OPERAND, request(STORE, destination=(A, 8), operand=LARGE)),
        (OPERAND, request(STORE, destination=(A, 8), operand=LAST)),
        (SIZE, request(CRC32, (A, 0))),
        (SIZE, request(COPY, (A, 0), (B, 0))),
        (SIZE, request(FILL, destination=(A, LARGE + 1))),
        (SIZE, request(LOAD, (A, 0xFFFF_FFFF))),
        (ADDRESS, request(CRC32, (LAST - 6, 8))),
        (ADDRESS, request(FILL, destination=(LAST, 2))),
        (ADDRESS, request(CRC32, (LAST - 14, 0), flags=SOURCE_LIST)),
        (UNEQUAL, request(COPY, (A, 8), (B, 9))),
        (UNEQUAL, request(COMPARE, (A, 9), (B, 8))),
    ],
    ids=short,
)
def test_a_request_that_makes_no_sense_does_nothing(reason: int, entry: bytes) -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(A, noise(64))
        assert await rig.do(entry) == Answer(INVALID, reason, 0, 7)
        assert rig.client.peek(A, 64) == noise(64)
        assert rig.client.peek(B, 64) == bytes(64)
        accesses = [size for _, _, size in rig.client.asked]
        assert accesses == [64, 32], "the request and its response, and nothing else"
        assert (await rig.do(GOOD)).code == DONE, "and it goes on"

    tell(story)


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        (BUFFERS, struct.pack("<QII", 0, 0, 0)),
        (BUFFERS, struct.pack("<QII", 0, 256, 0)),
        (BUFFERS, struct.pack("<QII", 0, 0xFFFF_FFFF, 0)),
        (RESERVED, struct.pack("<QII", 1, 1, 0)),
        (RESERVED, struct.pack("<QII", 0, 1, 1)),
        (RESERVED, struct.pack("<QIIIIQ", 0, 1, 0, 8, 1, A)),
        (SIZE, struct.pack("<QIIIIQIIQ", 0, 2, 0, 8, 0, A, 0, 0, A)),
        (SIZE, struct.pack("<QIIIIQIIQ", 0, 2, 0, LARGE, 0, A, 1, 0, A)),
        (ADDRESS, struct.pack("<QIIIIQ", 0, 1, 0, 8, 0, LAST - 6)),
    ],
    ids=short,
)
def test_a_list_that_makes_no_sense(reason: int, data: bytes) -> None:
    async def story(rig: Rig) -> None:
        rig.client.poke(LISTS, data)
        assert await rig.do(request(CRC32, (LISTS, 0), flags=SOURCE_LIST)) == Answer(INVALID, reason, 0, 7)
        assert (await rig.do(GOOD)).code == DONE

    tell(story)


def test_a_list_whose_entries_exceed_the_last_address() -> None:
    async def story(rig: Rig) -> None:
        page = LAST - 4095
        await rig.client.map(page, 4096)
        rig.client.poke(page + 4096 - 32, struct.pack("<QII", 0, 2, 0))
        answer = await rig.do(request(CRC32, (page + 4096 - 32, 0), flags=SOURCE_LIST))
        assert answer == Answer(INVALID, ADDRESS, 0, 7)
        rig.client.poke(page + 4096 - 32, struct.pack("<QIIIIQ", 0, 1, 0, 4096, 0, page))
        assert (await rig.do(request(CRC32, (page + 4096 - 32, 0), flags=SOURCE_LIST))).code == DONE

    tell(story)
