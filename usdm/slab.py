"""Blocks inside one slab of 2 MiB.

What is known of the blocks is kept in Python objects, never in the slab itself: a stray DMA write of a device can spoil
data, but not the allocator (S1 of the C library).
"""

from __future__ import annotations

import ctypes

from usdm import memory
from usdm.limits import IOVA_SLAB_SIZE, KIB, UNIT
from usdm.regions import Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.regions import Entry

UNITS = IOVA_SLAB_SIZE // UNIT
_ALL = (1 << UNITS) - 1
_Bytes = ctypes.c_char * IOVA_SLAB_SIZE
_VIEWED = 64 * KIB  # from here on the C library's memset is faster than a copy through a view
_ZEROS = memoryview(bytes(_VIEWED))

# What is copied into a slab's `live`, by length.
_ones: dict[int, bytearray] = {}
_none: dict[int, bytearray] = {}


class Slab(Region):
    """A slab, cut into blocks of whole units (1 KiB), first-fit.

    The first unit is as usable as any other, and both addresses of the slab are multiples of 2 MiB, so that an empty
    slab has room for every block up to 2 MiB at every alignment up to 2 MiB (A1 of the C library: sizes that always
    fail).

    Attributes:
        live: One byte a unit, 1 where a block is in use: what a translation looks at.
        blocks: The blocks in use, by virtual address.
        view: The slab's memory.
        owner: Which pool of the heap the slab belongs to.
    """

    __slots__ = ("_free", "_hopeless", "blocks", "live", "owner", "view")
    owned = True
    kind = "slab"

    def __init__(self, virt: int, node: int) -> None:
        super().__init__(virt, IOVA_SLAB_SIZE, node)
        self.live = bytearray(UNITS)
        self.blocks: dict[int, Block] = {}
        self.view = memoryview(_Bytes.from_address(virt)).cast("B")
        self.owner: tuple[int, int] = (node, 0)
        self._free = _ALL  # bit n: unit n is free
        self._hopeless = UNITS + 1  # a length known not to fit

    @property
    def empty(self) -> bool:
        """Every unit is free."""
        return self._free == _ALL

    @property
    def full(self) -> bool:
        """No unit is free."""
        return not self._free

    def entry(self) -> Entry:
        """See `Region.entry`."""
        return self.virt, self.virt + self.size, self.iova - self.virt, self.live, self.blocks

    def take(self, length: int, step: int) -> int | None:
        """Take the lowest `length` units, the first of which is a multiple of `step` (a power of two).

        Returns:
            The first unit, or None when there is no room.
        """
        if length >= self._hopeless:
            return None
        # Bit n of `run` stays set when units n … n+done-1 are free; `done` doubles.
        run, done = self._free, 1
        while done < length:
            more = min(done, length - done)
            run &= run >> more
            done += more
        if not run:
            self._hopeless = length
            return None
        if step > 1:
            run &= _ALL // ((1 << step) - 1)  # every step-th bit
            if not run:
                return None
        start = (run & -run).bit_length() - 1
        self._free ^= ((1 << length) - 1) << start
        return start

    def give_back(self, start: int, length: int) -> None:
        """Free units."""
        self._free |= ((1 << length) - 1) << start
        self._hopeless = UNITS + 1


class Block:
    """An allocation inside a slab. It is in use, or waits to be used again, or its units are free and it is gone.

    Taking a block into use and out of it are single steps of the interpreter each, so no lock is needed.

    Attributes:
        address: First virtual address.
        size: Bytes asked for.
        siblings: The blocks in use of the same slab.
        queue: Where the block waits when it has been freed.
        live: The slab's `live`; `span` is the part of this block, `ones` and `none` are what goes there.
        view: The block's memory when it is small enough to be cleared through it, otherwise None; `zeros` goes there.
    """

    __slots__ = (
        "address",
        "length",
        "live",
        "none",
        "ones",
        "queue",
        "siblings",
        "size",
        "slab",
        "span",
        "start",
        "view",
        "zeros",
    )

    def __init__(self, slab: Slab, start: int, length: int, size: int, queue: list[Block]) -> None:
        self.slab = slab
        self.start = start
        self.length = length
        self.size = size
        self.queue = queue
        self.siblings = slab.blocks
        self.address = slab.virt + start * UNIT
        self.live = slab.live
        self.span = slice(start, start + length)
        if length not in _ones:
            _none[length] = bytearray(length)
            _ones[length] = bytearray(b"\1" * length)
        self.ones, self.none = _ones[length], _none[length]
        held = length * UNIT
        self.zeros = _ZEROS[:held]
        self.view = slab.view[start * UNIT : start * UNIT + held] if held <= _VIEWED else None

    def clear(self) -> None:
        """Write zeros to all units of the block."""
        memory.clear(self.address, self.length * UNIT)

    def give_back(self) -> None:
        """Free the units."""
        self.slab.give_back(self.start, self.length)
