"""What the stub does for a request: buffers in memory and in scatter lists, and the operations on them."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from harness.device.qat.layout import (
    EQUAL,
    LIST_ENTRY,
    LIST_HEAD,
    LOCAL_BYTES,
    LONGEST_VALUE,
    MOST_BUFFERS,
    REQUEST,
    Opcode,
    RequestFlags,
)

_UNIT: Final = 1 << 20  # bytes that are held at a time


class Invalid(Exception):
    """A request that makes no sense."""


class Request(NamedTuple):
    """A request as it stands in the ring.

    Args:
        opcode: a number of :class:`Opcode`, or none.
        flags: see :class:`RequestFlags`.
        source, destination: the IOVA of the bytes or of a scatter list.
        source_size, destination_size: bytes; of a list, 0.
        operand: FILL: the byte; LOAD and STORE: offset in the device's own bytes.
        opaque: repeated in the response.
    """

    opcode: int
    flags: int
    source: int
    destination: int
    source_size: int
    destination_size: int
    operand: int
    opaque: int


class Span(NamedTuple):
    """A piece of memory: IOVA and bytes."""

    iova: int
    size: int


class Memory(Protocol):
    """How the stub reaches memory; misbehaviour is in between."""

    async def read(self, iova: int, size: int) -> bytes:
        """Read memory."""

    async def write(self, iova: int, data: bytes) -> None:
        """Write memory."""

    async def list(self, iova: int, size: int) -> bytes:
        """Read a scatter list."""


def parse(data: bytes | memoryview) -> Request:
    """The request in 64 bytes of the ring."""
    opcode, flags, _, _, source, destination, source_size, destination_size, operand, opaque = REQUEST.unpack(data)
    return Request(opcode, flags, source, destination, source_size, destination_size, operand, opaque)


async def perform(request: Request, memory: Memory, local: bytearray) -> int:
    """Do what a request asks for.

    Args:
        request: the request.
        memory: for every access to memory.
        local: the device's own bytes.

    Returns:
        The result for the response: CRC32's value, the offset of COMPARE's first difference or ``EQUAL``, else bytes.

    Raises:
        Invalid: the request makes no sense; nothing was done but reading its lists.
        harness.device.dma.DmaError: the IOMMU refused something; what came before has been done.
    """
    if request.flags & ~(RequestFlags.SOURCE_LIST | RequestFlags.DESTINATION_LIST):
        raise Invalid(f"flags {request.flags:#x}")
    work = _WORK.get(request.opcode)
    if work is None:
        raise Invalid(f"opcode {request.opcode}")
    return await work(request, memory, local)


async def _nop(_request: Request, _memory: Memory, _local: bytearray) -> int:
    return 0


async def _copy(request: Request, memory: Memory, _local: bytearray) -> int:
    source, destination = await _source(request, memory), await _destination(request, memory)
    for start, to, size in _paired(source, destination):
        await memory.write(to, await memory.read(start, size))
    return _total(source)


async def _fill(request: Request, memory: Memory, _local: bytearray) -> int:
    destination = await _destination(request, memory)
    if request.operand > 0xFF:
        raise Invalid(f"fill with {request.operand:#x}")
    for span in _units(destination):
        await memory.write(span.iova, bytes([request.operand]) * span.size)
    return _total(destination)


async def _crc32(request: Request, memory: Memory, _local: bytearray) -> int:
    crc = 0
    for span in _units(await _source(request, memory)):
        crc = zlib.crc32(await memory.read(span.iova, span.size), crc)
    return crc


async def _compare(request: Request, memory: Memory, _local: bytearray) -> int:
    first, second = await _source(request, memory), await _destination(request, memory)
    at = 0
    for one, other, size in _paired(first, second):
        ours, theirs = await memory.read(one, size), await memory.read(other, size)
        if ours != theirs:
            return at + next(n for n in range(size) if ours[n] != theirs[n])
        at += size
    return EQUAL


async def _load(request: Request, memory: Memory, local: bytearray) -> int:
    source = await _source(request, memory)
    at = _inside(request.operand, _total(source))
    for span in _units(source):
        local[at : at + span.size] = await memory.read(span.iova, span.size)
        at += span.size
    return _total(source)


async def _store(request: Request, memory: Memory, local: bytearray) -> int:
    destination = await _destination(request, memory)
    at = _inside(request.operand, _total(destination))
    for span in _units(destination):
        await memory.write(span.iova, bytes(local[at : at + span.size]))
        at += span.size
    return _total(destination)


_WORK: Final[dict[int, Callable[[Request, Memory, bytearray], Awaitable[int]]]] = {
    Opcode.NOP: _nop,
    Opcode.COPY: _copy,
    Opcode.FILL: _fill,
    Opcode.CRC32: _crc32,
    Opcode.COMPARE: _compare,
    Opcode.LOAD: _load,
    Opcode.STORE: _store,
}


async def _source(request: Request, memory: Memory) -> list[Span]:
    return await _spans(memory, request.source, request.source_size, request.flags & RequestFlags.SOURCE_LIST)


async def _destination(request: Request, memory: Memory) -> list[Span]:
    is_list = request.flags & RequestFlags.DESTINATION_LIST
    return await _spans(memory, request.destination, request.destination_size, is_list)


async def _spans(memory: Memory, address: int, size: int, is_list: int) -> list[Span]:
    """The pieces of a flat buffer or of a scatter list."""
    spans = [Span(address, size)]
    if is_list:
        _, count, _ = LIST_HEAD.unpack(await memory.list(address, LIST_HEAD.size))
        if not 1 <= count <= MOST_BUFFERS:
            raise Invalid(f"a list of {count} buffers")
        data = await memory.list(address + LIST_HEAD.size, count * LIST_ENTRY.size)
        spans = [Span(iova, length) for length, _, iova in LIST_ENTRY.iter_unpack(data)]
    if not all(span.size for span in spans) or _total(spans) > LONGEST_VALUE:
        raise Invalid(f"{_total(spans)} bytes in {len(spans)} buffers")
    if any(span.iova + span.size > 1 << 64 for span in spans):
        raise Invalid("a buffer beyond the last address")
    return spans


def _total(spans: Sequence[Span]) -> int:
    return sum(span.size for span in spans)


def _inside(offset: int, size: int) -> int:
    if offset + size > LOCAL_BYTES:
        raise Invalid(f"{size} bytes at {offset:#x} of the device's own")
    return offset


def _units(spans: Sequence[Span]) -> list[Span]:
    """The same bytes in pieces that can be held."""
    return [Span(span.iova + at, min(_UNIT, span.size - at)) for span in spans for at in range(0, span.size, _UNIT)]


def _paired(first: Sequence[Span], second: Sequence[Span]) -> list[tuple[int, int, int]]:
    """Both addresses and the bytes of each piece in which neither side changes buffers."""
    if _total(first) != _total(second):
        raise Invalid(f"{_total(first)} bytes and {_total(second)} bytes")
    ones, others = _units(first), _units(second)
    pairs: list[tuple[int, int, int]] = []
    while ones and others:
        one, other = ones.pop(0), others.pop(0)
        size = min(one.size, other.size)
        pairs.append((one.iova, other.iova, size))
        if one.size > size:
            ones.insert(0, Span(one.iova + size, one.size - size))
        if other.size > size:
            others.insert(0, Span(other.iova + size, other.size - size))
    return pairs
