"""The two rings of the QAT-like device, as its driver sees them: a page of requests, a page of responses.

The driver writes requests and moves their tail; it takes responses and moves their head. Both ends are byte offsets.
That a response has come is seen in memory: neither its first nor its last word is the signature of an empty entry.
"""

from __future__ import annotations

from harness.agent import qat_layout as q

ENTRIES_LOG2 = 6
ENTRIES = 1 << ENTRIES_LOG2
"""As many requests of 64 bytes fill a page."""

# The device is told of this many taken responses at once: a register costs more than the rest.
_TOLD_AT_ONCE = 16
MOST_IN_FLIGHT = ENTRIES - _TOLD_AT_ONCE
"""Requests without a response. So there is room for each response, also where the device knows of none taken yet."""

_EMPTY_ENTRY = q.EMPTY.to_bytes(4, "little") * (q.RESPONSE_SIZE // 4)
_LAST = q.RESPONSE_SIZE // 4 - 1


class Response:
    """How a request ended.

    Attributes:
        code: One of `qat_layout`: DONE, READ_REFUSED, WRITE_REFUSED, INVALID.
        result: What the operation gave: CRC32's value, where COMPARE found the first difference, or EQUAL, else bytes.
        address: The first IOVA that was refused.
        opaque: As in the request.
    """

    __slots__ = ("address", "code", "opaque", "result")

    def __init__(self, code: int, result: int, address: int, opaque: int) -> None:
        self.code, self.result, self.address, self.opaque = code, result, address, opaque


class Rings:
    """Requests on their way to the device, and responses on theirs to the driver."""

    def __init__(self, requests: memoryview, responses: memoryview) -> None:
        """Take the pages, both as bytes; of the responses' page the first half is used."""
        self._requests = requests
        self._responses = responses[: ENTRIES * q.RESPONSE_SIZE]
        self._words = self._responses.cast("I")
        self._registers = requests[:0].cast("I")
        self._tail = self._head = self._untold = 0

    def begin(self, registers: memoryview, requests: int, responses: int) -> None:
        """Set both rings up, empty; the device is not busy with older ones.

        Args:
            registers: The device's, as words of 4 bytes.
            requests: Address of the requests' page.
            responses: Address of the responses' page.
        """
        self._registers = registers
        self._responses[:] = _EMPTY_ENTRY * ENTRIES
        self._tail = self._head = self._untold = 0
        for ring, base in ((q.RING_REQUEST, requests), (q.RING_RESPONSE, responses)):
            registers[q.RING_LBASE // 4 + ring] = base & 0xFFFF_FFFF
            registers[q.RING_UBASE // 4 + ring] = base >> 32
            registers[q.RING_HEAD // 4 + ring] = 0
            registers[q.RING_TAIL // 4 + ring] = 0
            registers[q.RING_CONFIG // 4 + ring] = q.RING_ENABLE | ENTRIES_LOG2

    def put(self, request: bytes) -> None:
        """Put a request into the ring; the device learns of it by `ring`."""
        self._requests[self._tail : self._tail + q.REQUEST_SIZE] = request
        self._tail = (self._tail + q.REQUEST_SIZE) % (ENTRIES * q.REQUEST_SIZE)

    def ring(self) -> None:
        """Tell the device of the requests."""
        self._registers[q.RING_TAIL // 4 + q.RING_REQUEST] = self._tail

    def has_come(self, ahead: int = 0) -> bool:
        """Whether there is a response, and as many as `ahead` before it."""
        at = (self._head // 4 + ahead * (q.RESPONSE_SIZE // 4)) % len(self._words)
        return self._words[at] != q.EMPTY and self._words[at + _LAST] != q.EMPTY

    def count(self) -> int:
        """How many responses there are."""
        return next((ahead for ahead in range(ENTRIES) if not self.has_come(ahead)), ENTRIES)

    def oldest(self) -> int:
        """The opaque of the oldest response, which has come."""
        opaque: int = q.RESPONSE.unpack_from(self._responses, self._head)[-1]
        return opaque

    def take(self) -> Response:
        """Take the oldest response, which has come."""
        head = self._head
        code, _, result, address, opaque = q.RESPONSE.unpack_from(self._responses, head)
        self._responses[head : head + q.RESPONSE_SIZE] = _EMPTY_ENTRY
        self._head = (head + q.RESPONSE_SIZE) % (ENTRIES * q.RESPONSE_SIZE)
        self._untold += 1
        if self._untold == _TOLD_AT_ONCE:
            self._untold = 0
            self._registers[q.RING_HEAD // 4 + q.RING_RESPONSE] = self._head
        return Response(code, result, address, opaque)

    def release(self) -> None:
        """Give up the views of the pages, and of the registers."""
        self._words.release()
        self._responses.release()
        self._registers = memoryview(b"").cast("I")
