"""A BAR as registers with names, of 4 or 8 bytes each."""

from __future__ import annotations

from collections.abc import Callable

_WORD = 4
_SMALLEST = 4096


class Register:
    """A register of a BAR.

    Attributes:
        name: its name in the documentation.
        value: what it holds.
    """

    __slots__ = ("_read", "_reset", "_write", "_written", "name", "size", "value")

    def __init__(
        self,
        name: str,
        size: int = 4,
        *,
        reset: int = 0,
        read: Callable[[], int] | None = None,
        write: Callable[[int], None] | None = None,
        writable: bool | None = None,
    ) -> None:
        """Describe a register.

        Args:
            name: its name.
            size: 4 or 8 bytes.
            reset: what it holds after a reset.
            read: called for a read, gives the value; without it, what it holds.
            write: called after a write with the whole new value. It must not wait for a DMA: start a task.
            writable: whether a driver can change it; without it, when there is a ``write``.

        Raises:
            ValueError: it has another size, or does not hold what it shall after a reset.
        """
        if size not in (4, 8):
            raise ValueError(f"{name} of {size} bytes: a register has 4 or 8")
        if not 0 <= reset < 1 << 8 * size:
            raise ValueError(f"{name} cannot hold {reset:#x} after a reset: it has {size} bytes")
        self.name, self.size, self.value = name, size, reset
        self._reset, self._read, self._write = reset, read, write
        self._written = writable if writable is not None else write is not None

    def reset(self) -> None:
        """Set it to what it holds after a reset."""
        self.value = self._reset

    def load(self) -> int:
        """What a driver reads; what does not fit is cut off, as a counter in hardware runs over."""
        return (self.value if self._read is None else self._read()) & (1 << 8 * self.size) - 1

    def store(self, value: int) -> None:
        """What a driver writes: nothing happens to a register that cannot be written."""
        if self._written:
            self.value = value
            if self._write is not None:
                self._write(value)


class Bar:
    """A BAR's registers; what is between them reads as 0, and writes to it are lost."""

    def __init__(self, size: int) -> None:
        """Make an empty BAR.

        Args:
            size: bytes, a power of two, at least 4096, so that a guest can map it into a process.

        Raises:
            ValueError: it has another size.
        """
        if size < _SMALLEST or size & size - 1:
            raise ValueError(f"a BAR of {size:#x} bytes: it has a power of two, at least {_SMALLEST:#x}")
        self.size = size
        self._at: dict[int, tuple[Register, int]] = {}  # offset of each word: its register, the word's shift

    def add(self, offset: int, register: Register) -> Register:
        """Put a register at an offset, a multiple of its size.

        Raises:
            ValueError: it is not aligned, not inside, or there is one already.
        """
        words = range(offset, offset + register.size, _WORD)
        if offset % register.size or not 0 <= offset <= self.size - register.size:
            raise ValueError(f"{register.name} of {register.size} bytes cannot be at {offset:#x} of {self.size:#x}")
        taken = next((self._at[word][0].name for word in words if word in self._at), None)
        if taken is not None:
            raise ValueError(f"{register.name} at {offset:#x} meets {taken}")
        for word in words:
            self._at[word] = register, 8 * (word - offset)
        return register

    def first_in(self, place: range) -> str | None:
        """The name of the first register that has bytes at a place; None without one."""
        found = [word for word in self._at if word < place.stop and place.start < word + _WORD]
        return self._at[min(found)][0].name if found else None

    def reset(self) -> None:
        """Reset every register."""
        for register, shift in self._at.values():
            if not shift:  # once, however many words it has
                register.reset()

    def read(self, offset: int, count: int) -> bytes:
        """What a driver reads; the range is inside."""
        whole = self._at.get(offset)
        if whole is not None and whole[0].size == count:
            return whole[0].load().to_bytes(count, "little")
        data = bytearray()
        for word in range(offset & -_WORD, offset + count, _WORD):
            register, shift = self._at.get(word, (None, 0))
            value = 0 if register is None else register.load() >> shift & 0xFFFF_FFFF
            data += value.to_bytes(_WORD, "little")
        start = offset % _WORD
        return bytes(data[start : start + count])

    def write(self, offset: int, data: bytes) -> None:
        """What a driver writes; of a register, whole words only."""
        whole = self._at.get(offset)
        if whole is not None and whole[0].size == len(data):
            whole[0].store(int.from_bytes(data, "little"))
            return
        if offset % _WORD or len(data) % _WORD:
            return
        for at in range(0, len(data), _WORD):
            register, shift = self._at.get(offset + at, (None, 0))
            if register is not None:
                word = int.from_bytes(data[at : at + _WORD], "little")
                register.store(register.value & ~(0xFFFF_FFFF << shift) | word << shift)
