"""The fault registers: what the remapping unit says of the requests that it refused.

Intel Virtualization Technology for Directed I/O, chapter "Register Descriptions": Fault Status, Fault Event Control and
Fault Recording Registers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.machine.vtd.bits import PAGE, get, put

FSTS, FECTL, FEDATA, FEADDR, FEUADDR = 0x34, 0x38, 0x3C, 0x40, 0x44
PFO = 1 << 0
"""FSTS: a fault was lost, because there was no room to record it. Written as 1 it is cleared."""
PPF = 1 << 1
"""FSTS: a fault recording register holds a fault."""
IM, IP = 1 << 31, 1 << 30
"""FECTL: the fault event is masked; it waits."""
F = 1 << 63
"""Fault recording register, upper 64 bits: it holds a fault. Written as 1 it is cleared."""

_TWO = struct.Struct("<2Q")


def record_offset(capability: int) -> int:
    """Offset of the first fault recording register: CAP.FRO, in units of 16 bytes."""
    return get(capability, 33, 24) << 4


def record_count(capability: int) -> int:
    """How many fault recording registers there are: CAP.NFR + 1."""
    return get(capability, 47, 40) + 1


@dataclass(frozen=True, slots=True)
class FaultRecording:
    """One Fault Recording Register, 16 bytes.

    Args:
        fault: F, it holds a fault.
        read: T1: the request was a read; else a write.
        reason: FR.
        source_id: SID, bus << 8 | device << 3 | function.
        info: FI: the page of the address, or an interrupt's index in its bits 63:48. A multiple of 4096.
        pasid: PV, of 20 bits, or None when the request had none.
    """

    fault: bool = False
    read: bool = False
    reason: int = 0
    source_id: int = 0
    info: int = 0
    pasid: int | None = None

    SIZE = 16

    def encode(self) -> bytes:
        """The register's bytes; raises ValueError for values that do not fit."""
        if self.info % PAGE or not 0 <= self.info < 1 << 64:
            raise ValueError(f"{self.info:#x} is not the address of a page")
        high = put(self.source_id, 15, 0) | put(self.reason, 39, 32) | self.read << 62 | self.fault << 63
        if self.pasid is not None:
            high |= 1 << 31 | put(self.pasid, 59, 40)
        return _TWO.pack(self.info, high)

    @classmethod
    def decode(cls, data: bytes) -> FaultRecording:
        """Read 16 bytes."""
        low, high = _TWO.unpack(data)
        return cls(
            fault=bool(high & F),
            read=bool(get(high, 62, 62)),
            reason=get(high, 39, 32),
            source_id=get(high, 15, 0),
            info=low & ~(PAGE - 1),
            pasid=get(high, 59, 40) if get(high, 31, 31) else None,
        )
