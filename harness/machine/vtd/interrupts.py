"""Interrupt remapping: the table's entries, and the messages that name one.

Intel Virtualization Technology for Directed I/O, 5.1 "Interrupt Remapping" and 9.9 "Interrupt Remapping Table Entry for
Remapped Interrupts".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from harness.machine.vtd.bits import get, put, put_address

WINDOW = 0xFEE0_0000
"""Physical address of the first interrupt message; they end at 0xfeefffff."""

_TWO = struct.Struct("<2Q")


class Validation(IntEnum):
    """SVT: what the requester ID of a message is compared with."""

    NONE = 0
    REQUESTER = 1
    BUSES = 2
    RESERVED = 3


@dataclass(frozen=True, slots=True)
class InterruptEntry:
    """An interrupt-remapping table entry (IRTE), 16 bytes.

    Args:
        present: P.
        no_faults: FPD, faults are not recorded.
        vector: V, what is delivered.
        destination: DST, the local APIC's 8-bit id.
        source_id: SID.
        validation: SVT.
    """

    present: bool = True
    no_faults: bool = False
    vector: int = 0
    destination: int = 0
    source_id: int = 0
    validation: Validation = Validation.NONE

    SIZE = 16

    def encode(self) -> bytes:
        """The entry's bytes; raises ValueError for values that do not fit."""
        low = self.present | self.no_faults << 1 | put(self.vector, 23, 16) | put(self.destination, 47, 40)
        return _TWO.pack(low, put(self.source_id, 15, 0) | put(self.validation, 19, 18))

    @classmethod
    def decode(cls, data: bytes) -> InterruptEntry:
        """Read 16 bytes."""
        low, high = _TWO.unpack(data)
        return cls(
            present=bool(low & 1),
            no_faults=bool(get(low, 1, 1)),
            vector=get(low, 23, 16),
            destination=get(low, 47, 40),
            source_id=get(high, 15, 0),
            validation=Validation(get(high, 19, 18)),
        )


def table_address(table: int, entries: int) -> int:
    """The Interrupt Remapping Table Address Register for a table of 2, 4, 8 ... 65536 entries; raises ValueError."""
    if entries < 2 or entries > 1 << 16 or entries & (entries - 1):
        raise ValueError(f"{entries} is no power of two from 2 to 65536")
    return put_address(table) | (entries.bit_length() - 2)


def remappable_message(index: int) -> int:
    """The address of a message in the remappable format; raises ValueError for an index of more than 16 bits."""
    if not 0 <= index < 1 << 16:
        raise ValueError(f"{index} is no index of 16 bits")
    return WINDOW | put(index & 0x7FFF, 19, 5) | 1 << 4 | (index >> 15) << 2


def message_index(address: int) -> int | None:
    """The index that a message's address names; None for one of the old format."""
    return get(address, 19, 5) | get(address, 2, 2) << 15 if get(address, 4, 4) else None
