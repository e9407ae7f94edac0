"""What a sequence of USDM calls knows of each piece of memory; limits, and calls that are always refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PAGE, MIB = 4096, 1 << 20
SLAB = 2 * MIB
ENTRIES = 65535  # mappings that a container of type 1 takes
IOVAS = (1 << 48) - 2 * SLAB  # bytes of IOVA that the guest's IOMMU has, without unit 0 and that of the interrupts
HELD = 96 * MIB  # most memory at a time: what is mapped is pinned, and the guest has 512 MiB
NAMES = 24  # most pieces of memory of a sequence
DMAS = 6  # most DMAs of a sequence: each takes the emulated device 100 ms
TRANSLATED = 24  # most addresses that a step translates, about
CONTAINERS = {"edu0": None, "edu1": "second"}  # device to the name of its container, None is the default one
DEVICES = {"edu0": {"model": "edu", "at": "02:00.0"}, "edu1": {"model": "edu", "at": "03:00.0"}}

# What is refused whatever the state is: address (None: a buffer's, plus offset), offset, size, error.
WRONG_RANGES = (
    (None, 512, PAGE, "NotAligned"),
    (None, 0, PAGE - 1, "NotAligned"),
    (None, 1, 1, "NotAligned"),
    (None, 0, 0, "BadSize"),
    (None, 1, 0, "BadSize"),
    (None, 0, (2 << 30) + 1, "TooLarge"),
    (None, 1, (2 << 30) + PAGE, "TooLarge"),
    (None, 0, (1 << 64) - 1, "TooLarge"),
    (0, 0, PAGE, "NullAddress"),
    (0, 0, 0, "NullAddress"),
    ((1 << 64) - PAGE, 0, PAGE, "AddressNotAccessible"),
)
# Size, alignment, error.
WRONG_ALLOCATIONS = (
    (0, PAGE, "BadSize"),
    (0, 0, "BadSize"),
    (PAGE, 0, "BadAlignment"),
    (PAGE, 8 * MIB, "BadAlignment"),
    (64 * MIB + 1, 3, "BadAlignment"),
    (64 * MIB + 1, 8 * MIB, "TooLarge"),
    ((1 << 63) - 1, PAGE, "TooLarge"),
)


@dataclass
class Memory:
    """A piece of memory with a name, in bytes; `died` and `unmapped` are the counts from when they were last right."""

    name: str
    size: int
    align: int = PAGE
    allocated: bool = False  # by USDM; otherwise the program's own
    writable: bool = True
    here: bool = True  # the process has it; a child has not what its parent allocated
    born: int = 0  # `Calls.frees` when the program got it
    live: bool = True
    error: str = "DoubleFree"  # of freeing it once more
    died: int = 0  # `Calls.takes` when it was given back
    mapped: dict[int, int] = field(default_factory=dict)  # offset to size
    last: tuple[int, int] | None = None  # offset and size of the mapping that the name stands for in a DMA
    unmapped: int = 0  # `Calls.iovas` when that mapping ended
    filled: list[tuple[int, int, int]] = field(default_factory=list)  # offset, size, seed

    @property
    def large(self) -> bool:
        """It has pages and an IOVA of its own; smaller ones share slabs."""
        return self.allocated and (self.size >= SLAB or self.align >= SLAB)

    def overlaps(self, offset: int, size: int) -> bool:
        return any(o < offset + size and offset < o + s for o, s in self.mapped.items())

    def holds(self, offset: int) -> tuple[int, int] | None:
        return next(((o, s) for o, s in self.mapped.items() if o <= offset < o + s), None)

    def place(self, which: int) -> int:
        """An offset: the ends, and those where pieces of 2 MiB meet, rather than any."""
        places = {0, PAGE, 2 * PAGE, SLAB - PAGE, SLAB, SLAB + PAGE, self.size // 2 // PAGE * PAGE, self.size - PAGE}
        fitting = sorted(place for place in places if 0 <= place < self.size)
        return fitting[which % len(fitting)]

    def length(self, offset: int, which: int) -> int:
        """A size of a range that begins there."""
        rest = self.size - offset
        fitting = [size for size in (2 * PAGE, PAGE, rest // 2 // PAGE * PAGE, SLAB, rest) if 0 < size <= rest]
        return fitting[which % len(fitting)]

    def near(self, offset: int, which: int) -> tuple[int, int]:
        """Offset and size of a range that meets or cuts the mapping at an offset."""
        size = self.mapped[offset]
        ranges = [(offset, size - PAGE), (offset, size + PAGE), (offset + PAGE, PAGE), (offset + size - PAGE, PAGE)]
        ranges += [(offset + PAGE, size), (offset + size, PAGE), (offset - PAGE, PAGE), (offset - PAGE, size + PAGE)]
        fitting = [(o, s) for o, s in ranges if o >= 0 and s > 0 and o + s <= self.size] or [(offset, size)]
        return fitting[which % len(fitting)]


@dataclass
class State:
    """What the process holds after a step."""

    container: str | None
    mapped: tuple[tuple[str, int, int], ...]  # buffer, offset, size
    allocated: tuple[tuple[str, int], ...]  # allocation, size


def range_of(memory: Memory, offset: int, size: int) -> dict[str, Any]:
    return {"buffer": memory.name, **({"offset": offset} if offset else {}), "size": size}


def spoil(memory: Memory, offset: int, size: int) -> None:
    """Nothing is known of these bytes any more."""
    memory.filled = [part for part in memory.filled if part[0] >= offset + size or part[0] + part[1] <= offset]
