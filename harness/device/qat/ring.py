"""A transport ring in QAT's style: entries in memory, head and tail as byte offsets in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.device.qat import layout as q
from harness.device.registers import Bar, Register


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told of a ring.

    Args:
        moved: the driver has set the ring up, disabled it, or moved its own end of it.
        broken: it wrote what makes no sense: why, and the value.
    """

    moved: Callable[[], None]
    broken: Callable[[q.Cause, int], None]


class Ring:
    """The registers of a ring, and where its entries are.

    While it is enabled, the driver moves one end, the device the other one, and nobody changes where it lies.

    Attributes:
        enabled: the driver has set it up.
        life: how often that has been done.
        head, tail: byte offsets of the oldest entry, and of the next one to come.
    """

    def __init__(self, bar: Bar, number: int, entry: int, listener: Listener) -> None:
        """Make the registers.

        Args:
            bar: where.
            number: which ring.
            entry: bytes of an entry.
            listener: who is told of what the driver does.
        """
        self._number, self._entry, self._listener = number, entry, listener
        self.life = 0
        self.reset()

        def add(offset: int, name: str, read: Callable[[], int], write: Callable[[int], None]) -> None:
            bar.add(offset + 4 * number, Register(f"{name}[{number}]", read=read, write=write))

        add(q.RING_CONFIG, "RING_CONFIG", lambda: self._config, self._write_config)
        add(q.RING_LBASE, "RING_LBASE", lambda: self._low, self._write_low)
        add(q.RING_UBASE, "RING_UBASE", lambda: self._high, self._write_high)
        add(q.RING_HEAD, "RING_HEAD", lambda: self.head, self._write_head)
        add(q.RING_TAIL, "RING_TAIL", lambda: self.tail, self._write_tail)

    def reset(self) -> None:
        """Forget it."""
        self.enabled = False
        self.head = self.tail = 0
        self._sent = 0  # where the next entry goes: the tail, and entries whose arrival nobody has said yet
        self._config = self._low = self._high = 0

    # ---- the driver

    def _write_config(self, value: int) -> None:
        enable = bool(value & q.RING_ENABLE)
        if enable and self.enabled and (value ^ self._config) & q.RING_SIZE_MASK:
            # Head and tail were checked against the size that it was enabled with, which stays.
            self._listener.broken(q.Cause.RING_SIZE, value)
            return
        self._config = value
        if enable and not self.enabled:
            if not q.LEAST_ENTRIES_LOG2 <= value & q.RING_SIZE_MASK <= q.MOST_ENTRIES_LOG2:
                self._listener.broken(q.Cause.RING_SIZE, value)
                return
            if self._base + self.size > 1 << 64:
                self._listener.broken(q.Cause.RING_BASE, self._base)
                return
            for offset in (self.head, self.tail):
                if not self._fits(offset):
                    self._listener.broken(q.Cause.RING_OFFSET, offset)
                    return
            self.life += 1
            self._sent = self.tail
        self.enabled = enable
        self._listener.moved()

    def _write_low(self, value: int) -> None:
        if not self.enabled:
            self._low = value

    def _write_high(self, value: int) -> None:
        if not self.enabled:
            self._high = value

    def _write_head(self, value: int) -> None:
        if not self.enabled:
            self.head = value
        elif self._number == q.RING_RESPONSE:
            # It cannot have taken more than there is.
            if not self._fits(value) or self._distance(self.head, value) > self._distance(self.head, self._sent):
                self._listener.broken(q.Cause.RING_OFFSET, value)
                return
            self.head = value
            self._listener.moved()

    def _write_tail(self, value: int) -> None:
        if not self.enabled:
            self.tail = value
        elif self._number == q.RING_REQUEST:
            if not self._fits(value):
                self._listener.broken(q.Cause.RING_OFFSET, value)
                return
            self.tail = value
            self._listener.moved()

    def _fits(self, offset: int) -> bool:
        return offset < self.size and not offset % self._entry

    def _distance(self, first: int, last: int) -> int:
        return (last - first) % self.size

    # ---- the device

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return self._entry << (self._config & q.RING_SIZE_MASK)

    @property
    def _base(self) -> int:
        return self._high << 32 | self._low

    @property
    def empty(self) -> bool:
        """Nothing is in it."""
        return self.head == self.tail

    @property
    def full(self) -> bool:
        """One entry more, and it would look empty."""
        return self._distance(self.head, self._sent + self._entry) == 0

    def waiting(self) -> tuple[int, int]:
        """The IOVA and the bytes of the entries from the oldest one up to the newest, or to the end of the memory."""
        return self._base + self.head, (self.tail if self.tail > self.head else self.size) - self.head

    def taken(self) -> None:
        """The oldest entry is done."""
        self.head = (self.head + self._entry) % self.size

    def send(self) -> int:
        """Begin to write an entry into a ring that is not full; gives its IOVA."""
        address, self._sent = self._base + self._sent, (self._sent + self._entry) % self.size
        return address

    def arrived(self) -> None:
        """The oldest entry that was sent is in memory."""
        self.tail = (self.tail + self._entry) % self.size
