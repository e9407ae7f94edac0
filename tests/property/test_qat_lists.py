"""Operations on any scatter lists do what the same operation does on the bytes in a row."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.device.qat import operations
from harness.device.qat.layout import EQUAL, Opcode, RequestFlags
from harness.device.qat.operations import Request, perform

SPACE = 1 << 16
CONTENT = bytes((7 * at + at // 256) % 256 for at in range(SPACE))
Pieces = list[tuple[int, int]]


class Plain:
    """Memory without an IOMMU, and lists beside it."""

    def __init__(self) -> None:
        self.bytes = bytearray(CONTENT)
        self.lists: dict[int, bytes] = {}
        self.longest = 0

    async def read(self, iova: int, size: int) -> bytes:
        self.longest = max(self.longest, size)
        return bytes(self.bytes[iova : iova + size])

    async def write(self, iova: int, data: bytes) -> None:
        self.bytes[iova : iova + len(data)] = data

    async def list(self, iova: int, size: int) -> bytes:
        for start, data in self.lists.items():
            if start <= iova < start + len(data):
                return data[iova - start : iova - start + size]
        raise AssertionError(f"there is no list at {iova:#x}")

    def of(self, pieces: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(bytes(self.bytes[at : at + size]) for at, size in pieces)

    def listed(self, address: int, pieces: Pieces) -> int:
        data = struct.pack("<QII", 0, len(pieces), 0)
        self.lists[address] = data + b"".join(struct.pack("<IIQ", size, 0, at) for at, size in pieces)
        return address


def pieces(first: int, last: int) -> st.SearchStrategy[Pieces]:
    """Pieces between two addresses that do not overlap, in any order."""

    def cut(marks: set[int]) -> Pieces:
        edges = sorted(marks)
        return [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=False)]

    marks = st.sets(st.integers(first, last), min_size=2, max_size=40)
    return marks.map(cut).flatmap(st.permutations).map(list)


def as_long(there: Pieces, size: int) -> Pieces:
    """The first pieces that have so many bytes together."""
    found, left = [], size
    for at, length in there:
        if left:
            found.append((at, min(length, left)))
            left -= found[-1][1]
    assert not left
    return found


def run(memory: Plain, opcode: Opcode, source: Pieces, destination: Pieces, operand: int = 0) -> int:
    flags = bool(source) * RequestFlags.SOURCE_LIST | bool(destination) * RequestFlags.DESTINATION_LIST
    places = [
        memory.listed(1 << 40, source) if source else 0,
        memory.listed(1 << 41, destination) if destination else 0,
    ]
    request = Request(opcode, int(flags), *places, 0, 0, operand, 1, reserved=False)
    return asyncio.run(perform(request, memory, bytearray(16 << 20)))


@settings(deadline=None)
@given(source=pieces(0, SPACE // 2 - 1), there=pieces(SPACE // 2, SPACE), unit=st.sampled_from([1, 100, 4096, 1 << 20]))
def test_a_copy_is_the_copy_of_the_bytes_in_a_row(source: Pieces, there: Pieces, unit: int) -> None:
    operations_unit = operations._UNIT
    memory = Plain()
    size = sum(length for _, length in source)
    have = sum(length for _, length in there)
    source = as_long(source, min(size, have))
    destination = as_long(there, min(size, have))
    data, before = memory.of(source), bytes(memory.bytes)
    try:
        operations._UNIT = max(unit, size // 200 + 1)  # type: ignore[misc]
        assert run(memory, Opcode.COPY, source, destination) == len(data)
        assert memory.longest <= operations._UNIT
    finally:
        operations._UNIT = operations_unit  # type: ignore[misc]
    assert memory.of(destination) == data
    expected = bytearray(before)
    at = 0
    for start, length in destination:
        expected[start : start + length] = data[at : at + length]
        at += length
    assert memory.bytes == expected, "and nothing else changed"
    assert run(memory, Opcode.COMPARE, source, destination) == EQUAL


@settings(deadline=None)
@given(source=pieces(0, SPACE), other=pieces(0, SPACE))
def test_crc32_and_compare_see_the_bytes_in_a_row(source: Pieces, other: Pieces) -> None:
    memory = Plain()
    assert run(memory, Opcode.CRC32, source, []) == zlib.crc32(memory.of(source))
    size = min(sum(length for _, length in source), sum(length for _, length in other))
    source, other = as_long(source, size), as_long(other, size)
    left, right = memory.of(source), memory.of(other)
    first = next((at for at in range(size) if left[at] != right[at]), EQUAL)
    assert run(memory, Opcode.COMPARE, source, other) == first


@settings(deadline=None)
@given(there=pieces(0, SPACE), byte=st.integers(0, 255))
def test_a_fill_reaches_all_and_nothing_else(there: Pieces, byte: int) -> None:
    memory = Plain()
    expected = bytearray(memory.bytes)
    for start, length in there:
        expected[start : start + length] = bytes([byte]) * length
    assert run(memory, Opcode.FILL, [], there, byte) == sum(length for _, length in there)
    assert memory.bytes == expected
