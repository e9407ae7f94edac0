"""Entries of the tables between the registers and the page tables: which requester has which page tables.

Intel Virtualization Technology for Directed I/O, chapter 9 "Translation Structure Formats". Each entry can be written
(``encode``) and read (``decode``); bits that are not named here are written as 0 and not looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from harness.machine.vtd.bits import get, get_address, put, put_address

_PRESENT = 1
_TWO = struct.Struct("<2Q")
_FOUR = struct.Struct("<4Q")
_EIGHT = struct.Struct("<8Q")


def levels_of(width: int) -> int | None:
    """The number of levels of page tables for a field AW (second stage); None for a reserved value."""
    return {1: 3, 2: 4, 3: 5}.get(width)


def width_of(levels: int) -> int:
    """The field AW for 3, 4 or 5 levels of page tables; raises ValueError."""
    if levels not in (3, 4, 5):
        raise ValueError(f"page tables have 3, 4 or 5 levels, not {levels}")
    return levels - 2


@dataclass(frozen=True, slots=True)
class RootEntry:
    """9.1 Root Entry, 16 bytes, one for each bus; in scalable mode 9.2 Scalable-Mode Root Entry.

    Args:
        lower: address of the context table; in scalable mode of the lower half's (devices 0 to 15). None: not present.
        upper: in scalable mode address of the upper half's context table; None: not present.
    """

    lower: int | None = None
    upper: int | None = None

    SIZE = 16

    def encode(self) -> bytes:
        """The entry's bytes; raises ValueError for a bad address."""
        return _TWO.pack(*(0 if one is None else put_address(one) | _PRESENT for one in (self.lower, self.upper)))

    @classmethod
    def decode(cls, data: bytes) -> RootEntry:
        """Read 16 bytes."""
        return cls(*(get_address(word) if word & _PRESENT else None for word in _TWO.unpack(data)))


class TranslationType(IntEnum):
    """TT of a legacy context entry: what is done with requests without a PASID."""

    UNTRANSLATED_ONLY = 0  # through the page tables; translated requests are blocked
    DEVICE_TLB = 1  # through the page tables; translated requests are let through
    PASS_THROUGH = 2
    RESERVED = 3


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """9.3 Context Entry (legacy mode), 16 bytes, one for each device and function of a bus.

    Args:
        present: P.
        type: TT.
        table: SSPTPTR, address of the topmost second-stage page table.
        width: AW: 1, 2, 3 for 3, 4, 5 levels; other values are reserved.
        domain: DID.
        no_faults: FPD, faults are not recorded.
    """

    present: bool = True
    type: TranslationType = TranslationType.UNTRANSLATED_ONLY
    table: int = 0
    width: int = 2
    domain: int = 0
    no_faults: bool = False

    SIZE = 16

    def encode(self) -> bytes:
        """The entry's bytes; raises ValueError for values that do not fit."""
        low = self.present | self.no_faults << 1 | put(self.type, 3, 2) | put_address(self.table)
        return _TWO.pack(low, put(self.width, 2, 0) | put(self.domain, 23, 8))

    @classmethod
    def decode(cls, data: bytes) -> ContextEntry:
        """Read 16 bytes."""
        low, high = _TWO.unpack(data)
        return cls(
            present=bool(low & _PRESENT),
            type=TranslationType(get(low, 3, 2)),
            table=get_address(low),
            width=get(high, 2, 0),
            domain=get(high, 23, 8),
            no_faults=bool(get(low, 1, 1)),
        )


@dataclass(frozen=True, slots=True)
class ScalableContextEntry:
    """9.4 Scalable-Mode Context Entry, 32 bytes.

    Args:
        present: P.
        directory: PASIDDIRPTR, address of the PASID directory.
        directory_size: PDTS: the directory has 2 to the power of PDTS + 7 entries.
        rid_pasid: RID_PASID, the PASID of requests without one.
        no_faults: FPD.
    """

    present: bool = True
    directory: int = 0
    directory_size: int = 0
    rid_pasid: int = 0
    no_faults: bool = False

    SIZE = 32

    def encode(self) -> bytes:
        """The entry's bytes; raises ValueError for values that do not fit."""
        first = self.present | self.no_faults << 1 | put(self.directory_size, 11, 9) | put_address(self.directory)
        return _FOUR.pack(first, put(self.rid_pasid, 19, 0), 0, 0)

    @classmethod
    def decode(cls, data: bytes) -> ScalableContextEntry:
        """Read 32 bytes."""
        first, second, _, _ = _FOUR.unpack(data)
        return cls(
            present=bool(first & _PRESENT),
            directory=get_address(first),
            directory_size=get(first, 11, 9),
            rid_pasid=get(second, 19, 0),
            no_faults=bool(get(first, 1, 1)),
        )

    @property
    def pasids(self) -> int:
        """How many PASIDs the directory has room for."""
        return 1 << self.directory_size + 7 + 6


@dataclass(frozen=True, slots=True)
class PasidDirectoryEntry:
    """9.5 Scalable-Mode PASID Directory Entry, 8 bytes, one for each 64 PASIDs.

    Args:
        table: SMPTBLPTR, address of the PASID table; None: not present.
    """

    table: int | None = None

    SIZE = 8

    def encode(self) -> bytes:
        """The entry's bytes; raises ValueError for a bad address."""
        return (0 if self.table is None else put_address(self.table) | _PRESENT).to_bytes(8, "little")

    @classmethod
    def decode(cls, data: bytes) -> PasidDirectoryEntry:
        """Read 8 bytes."""
        word = int.from_bytes(data, "little")
        return cls(get_address(word) if word & _PRESENT else None)


class PasidType(IntEnum):
    """PGTT of a PASID table entry: through which page tables requests go."""

    FIRST = 1
    SECOND = 2
    NESTED = 3
    PASS_THROUGH = 4


@dataclass(frozen=True, slots=True)
class PasidTableEntry:
    """9.6 Scalable-Mode PASID Table Entry, 64 bytes.

    Args:
        present: P.
        type: PGTT, of :class:`PasidType`; other values are reserved.
        second: SSPTPTR, address of the topmost second-stage page table.
        width: AW of the second stage: 1, 2, 3 for 3, 4, 5 levels.
        domain: DID.
        first: FSPTPTR, address of the topmost first-stage page table.
        first_width: FSPM: 0 for 4 levels of the first stage, 1 for 5.
        no_faults: FPD.
    """

    present: bool = True
    type: int = PasidType.SECOND
    second: int = 0
    width: int = 2
    domain: int = 0
    first: int = 0
    first_width: int = 0
    no_faults: bool = False

    SIZE = 64

    def encode(self) -> bytes:
        """The entry's bytes; raises ValueError for values that do not fit."""
        zeroth = self.present | self.no_faults << 1 | put(self.width, 4, 2) | put(self.type, 8, 6)
        second = put(self.first_width, 3, 2) | put_address(self.first)
        return _EIGHT.pack(zeroth | put_address(self.second), put(self.domain, 15, 0), second, *[0] * 5)

    @classmethod
    def decode(cls, data: bytes) -> PasidTableEntry:
        """Read 64 bytes."""
        zeroth, first, second, *_ = _EIGHT.unpack(data)
        return cls(
            present=bool(zeroth & _PRESENT),
            type=get(zeroth, 8, 6),
            second=get_address(zeroth),
            width=get(zeroth, 4, 2),
            domain=get(first, 15, 0),
            first=get_address(second),
            first_width=get(second, 3, 2),
            no_faults=bool(get(zeroth, 1, 1)),
        )
