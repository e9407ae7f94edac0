"""What the stub does for a request: buffers in memory and in scatter lists, and the operations on them."""

from __future__ import annotations

import mmap
import zlib
from collections import deque
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
    REQUEST_USED,
    Opcode,
    Reason,
    RequestFlags,
)

Local = bytearray | mmap.mmap
"""The device's own bytes."""

_UNIT: Final = 1 << 20  # bytes that are held at a time
_ADDRESSES: Final = 1 << 64


class Invalid(Exception):
    """A request that makes no sense.

    Args:
        reason: what is wrong with it.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Request(NamedTuple):
    """A request as it stands in the ring.

    Args:
        opcode: a number of :class:`Opcode`, or none.
        flags: see :class:`RequestFlags`.
        source, destination: the IOVA of the bytes or of a scatter list.
        source_size, destination_size: bytes; of a list, 0.
        operand: FILL: the byte; LOAD and STORE: offset in the device's own bytes.
        opaque: repeated in the response.
        reserved: whether any bit is set that must not be.
    """

    opcode: int
    flags: int
    source: int
    destination: int
    source_size: int
    destination_size: int
    operand: int
    opaque: int
    reserved: bool


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
    opcode, flags, half, word, source, destination, source_size, destination_size, operand, opaque = REQUEST.unpack(
        data
    )
    reserved = bool(half or word or any(data[REQUEST_USED:]))
    return Request(opcode, flags, source, destination, source_size, destination_size, operand, opaque, reserved)


async def perform(request: Request, memory: Memory, local: Local) -> int:
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
    operation = _OPERATIONS.get(request.opcode)
    if operation is None:
        raise Invalid(Reason.OPCODE)
    if request.flags & ~operation.flags:
        raise Invalid(Reason.FLAGS)
    unused = (
        *((request.source, request.source_size) if not operation.source else ()),
        *((request.destination, request.destination_size) if not operation.destination else ()),
        *((request.operand,) if not operation.operand else ()),
    )
    if request.reserved or any(unused):
        raise Invalid(Reason.RESERVED)
    if request.operand > operation.operand:
        raise Invalid(Reason.OPERAND)
    return await operation.work(request, memory, local)


async def _nop(_request: Request, _memory: Memory, _local: Local) -> int:
    return 0


async def _copy(request: Request, memory: Memory, _local: Local) -> int:
    source, destination = await _source(request, memory), await _destination(request, memory)
    for start, to, size in _paired(source, destination):
        await memory.write(to, await memory.read(start, size))
    return _total(source)


async def _fill(request: Request, memory: Memory, _local: Local) -> int:
    destination = await _destination(request, memory)
    data = bytes([request.operand]) * _UNIT
    for span in _units(destination):
        await memory.write(span.iova, data[: span.size])
    return _total(destination)


async def _crc32(request: Request, memory: Memory, _local: Local) -> int:
    crc = 0
    for span in _units(await _source(request, memory)):
        crc = zlib.crc32(await memory.read(span.iova, span.size), crc)
    return crc


async def _compare(request: Request, memory: Memory, _local: Local) -> int:
    first, second = await _source(request, memory), await _destination(request, memory)
    at = 0
    for one, other, size in _paired(first, second):
        ours, theirs = await memory.read(one, size), await memory.read(other, size)
        if ours != theirs:
            return at + _first_difference(ours, theirs)
        at += size
    return EQUAL


async def _load(request: Request, memory: Memory, local: Local) -> int:
    source = await _source(request, memory)
    at = _inside(request.operand, _total(source))
    for span in _units(source):
        local[at : at + span.size] = await memory.read(span.iova, span.size)
        at += span.size
    return _total(source)


async def _store(request: Request, memory: Memory, local: Local) -> int:
    destination = await _destination(request, memory)
    at = _inside(request.operand, _total(destination))
    for span in _units(destination):
        await memory.write(span.iova, bytes(local[at : at + span.size]))
        at += span.size
    return _total(destination)


class _Operation(NamedTuple):
    """An operation: what it does, which sides it has, and its largest operand."""

    work: Callable[[Request, Memory, Local], Awaitable[int]]
    source: bool
    destination: bool
    operand: int = 0

    @property
    def flags(self) -> int:
        """The flags that it knows."""
        return self.source * RequestFlags.SOURCE_LIST | self.destination * RequestFlags.DESTINATION_LIST


_OPERATIONS: Final[dict[int, _Operation]] = {
    Opcode.NOP: _Operation(_nop, source=False, destination=False),
    Opcode.COPY: _Operation(_copy, source=True, destination=True),
    Opcode.FILL: _Operation(_fill, source=False, destination=True, operand=0xFF),
    Opcode.CRC32: _Operation(_crc32, source=True, destination=False),
    Opcode.COMPARE: _Operation(_compare, source=True, destination=True),
    Opcode.LOAD: _Operation(_load, source=True, destination=False, operand=LOCAL_BYTES - 1),
    Opcode.STORE: _Operation(_store, source=False, destination=True, operand=LOCAL_BYTES - 1),
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
        if size:
            raise Invalid(Reason.RESERVED)
        spans = await _listed(memory, address)
    if not all(span.size for span in spans) or _total(spans) > LONGEST_VALUE:
        raise Invalid(Reason.SIZE)
    if any(span.iova + span.size > _ADDRESSES for span in spans):
        raise Invalid(Reason.ADDRESS)
    return spans


async def _listed(memory: Memory, address: int) -> list[Span]:
    """The pieces of a scatter list."""
    entries = address + LIST_HEAD.size
    if entries > _ADDRESSES:
        raise Invalid(Reason.ADDRESS)
    first, count, last = LIST_HEAD.unpack(await memory.list(address, LIST_HEAD.size))
    if first or last:
        raise Invalid(Reason.RESERVED)
    if not 1 <= count <= MOST_BUFFERS:
        raise Invalid(Reason.BUFFERS)
    if entries + count * LIST_ENTRY.size > _ADDRESSES:
        raise Invalid(Reason.ADDRESS)
    data = await memory.list(entries, count * LIST_ENTRY.size)
    found = list(LIST_ENTRY.iter_unpack(data))
    if any(reserved for _, reserved, _ in found):
        raise Invalid(Reason.RESERVED)
    return [Span(iova, length) for length, _, iova in found]


def _total(spans: Sequence[Span]) -> int:
    return sum(span.size for span in spans)


def _inside(offset: int, size: int) -> int:
    if offset + size > LOCAL_BYTES:
        raise Invalid(Reason.OPERAND)
    return offset


def _units(spans: Sequence[Span]) -> list[Span]:
    """The same bytes in pieces that can be held."""
    return [Span(span.iova + at, min(_UNIT, span.size - at)) for span in spans for at in range(0, span.size, _UNIT)]


def _paired(first: Sequence[Span], second: Sequence[Span]) -> list[tuple[int, int, int]]:
    """Both addresses and the bytes of each piece in which neither side changes buffers."""
    if _total(first) != _total(second):
        raise Invalid(Reason.UNEQUAL)
    ones, others = deque(_units(first)), deque(_units(second))
    pairs: list[tuple[int, int, int]] = []
    while ones and others:
        one, other = ones.popleft(), others.popleft()
        size = min(one.size, other.size)
        pairs.append((one.iova, other.iova, size))
        for rest, span in ((ones, one), (others, other)):
            if span.size > size:
                rest.appendleft(Span(span.iova + size, span.size - size))
    return pairs


def _first_difference(first: bytes, second: bytes) -> int:
    """The index of the first byte in which two strings of one length differ; they do."""
    low, high = 0, len(first)
    while high - low > 1:  # the first difference is in low..high
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
