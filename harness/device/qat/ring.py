"""A transport ring in QAT's style: entries in memory, head and tail as byte offsets in registers."""

from __future__ import annotations

from collections.abc import Callable

from harness.device.qat import layout as q
from harness.device.registers import Bar, Register


class Ring:
    """The registers of a ring, and where its entries are."""

    def __init__(self, bar: Bar, number: int, entry: int, on_tail: Callable[[], None] = lambda: None) -> None:
        """Make the registers.

        Args:
            bar: where.
            number: which ring.
            entry: bytes of an entry.
            on_tail: called when the driver has written the tail.
        """
        self._entry = entry
        at = 4 * number
        self._config = bar.add(q.RING_CONFIG + at, Register(f"RING_CONFIG[{number}]", writable=True))
        self._low = bar.add(q.RING_LBASE + at, Register(f"RING_LBASE[{number}]", writable=True))
        self._high = bar.add(q.RING_UBASE + at, Register(f"RING_UBASE[{number}]", writable=True))
        self._head = bar.add(q.RING_HEAD + at, Register(f"RING_HEAD[{number}]", writable=True))
        self._tail = bar.add(q.RING_TAIL + at, Register(f"RING_TAIL[{number}]", write=lambda _: on_tail()))

    @property
    def enabled(self) -> bool:
        """The driver has set it up, with a size that a ring can have."""
        config = self._config.value
        return bool(config & q.RING_ENABLE) and 1 <= config & q.RING_ENTRIES_MASK <= q.MOST_ENTRIES_LOG2

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return self._entry << min(self._config.value & q.RING_ENTRIES_MASK, q.MOST_ENTRIES_LOG2)

    def _offset(self, register: Register) -> int:
        return register.value % self.size // self._entry * self._entry

    @property
    def _base(self) -> int:
        return self._high.value << 32 | self._low.value

    @property
    def empty(self) -> bool:
        """Nothing is in it."""
        return self._offset(self._head) == self._offset(self._tail)

    @property
    def head_address(self) -> int:
        """The IOVA of the oldest entry."""
        return self._base + self._offset(self._head)

    @property
    def tail_address(self) -> int:
        """The IOVA of the next entry to come."""
        return self._base + self._offset(self._tail)

    @property
    def contiguous(self) -> int:
        """Bytes of the entries from the oldest one up to the newest, or to the end of the memory."""
        head, tail = self._offset(self._head), self._offset(self._tail)
        return (tail if tail > head else self.size) - head

    def advance_head(self) -> None:
        """The oldest entry is done."""
        self._head.value = (self._offset(self._head) + self._entry) % self.size

    def advance_tail(self) -> None:
        """An entry has been written."""
        self._tail.value = (self._offset(self._tail) + self._entry) % self.size
