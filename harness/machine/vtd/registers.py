"""The registers of a remapping unit that say where its tables begin.

Intel Virtualization Technology for Directed I/O, chapter "Register Descriptions": Capability, Global Status and Root
Table Address Register.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from harness.machine.vtd.bits import get, get_address, put_address

BASE = 0xFED9_0000
"""Physical address of the registers of QEMU's intel-iommu."""

SIZE = 0x28
"""Bytes of the registers from VER to RTADDR."""

CAP, ECAP, GSTS, RTADDR = 0x08, 0x10, 0x1C, 0x20
CCMD, IQH, IQT, IQA, IRTA = 0x28, 0x80, 0x88, 0x90, 0xB8
GCMD = 0x18
TE, SRTP, QIE, IRE, SIRTP = 1 << 31, 1 << 30, 1 << 26, 1 << 25, 1 << 24
"""Bits of GCMD; those of GSTS that tell of the same thing are at the same places."""
DW = 1 << 11
"""IQA: descriptors have 32 bytes."""
SMTS = 1 << 43
"""ECAP: there is scalable mode."""

_LAYOUT = struct.Struct("<I4xQQIIQ")  # VER, CAP, ECAP, GCMD, GSTS, RTADDR
_TES = 31


class TableMode(IntEnum):
    """RTADDR.TTM: what the root table is."""

    LEGACY = 0
    SCALABLE = 1
    RESERVED = 2
    ABORT = 3


@dataclass(frozen=True, slots=True)
class RootTableAddress:
    """The Root Table Address Register (RTADDR).

    Args:
        table: RTA, address of the root table, a multiple of 4096.
        mode: TTM.
    """

    table: int
    mode: TableMode = TableMode.LEGACY

    def encode(self) -> int:
        """The register's 64 bits; raises ValueError for a bad address."""
        return put_address(self.table) | self.mode << 10

    @classmethod
    def decode(cls, word: int) -> RootTableAddress:
        """Read the register's 64 bits."""
        return cls(get_address(word), TableMode(get(word, 11, 10)))


@dataclass(frozen=True, slots=True)
class Registers:
    """What the registers say.

    Args:
        capability: CAP.
        extended: ECAP.
        enabled: GSTS.TES: DMA is translated.
        root: RTADDR.
    """

    capability: int
    extended: int
    enabled: bool
    root: RootTableAddress

    def encode(self) -> bytes:
        """The bytes from VER to RTADDR as they are read; ``SIZE`` of them."""
        return _LAYOUT.pack(0x10, self.capability, self.extended, 0, self.enabled << _TES, self.root.encode())

    @classmethod
    def decode(cls, data: bytes) -> Registers:
        """Read ``SIZE`` bytes from VER on.

        Raises:
            ValueError: they are fewer or more.
        """
        if len(data) != SIZE:
            raise ValueError(f"the registers are {SIZE} bytes, not {len(data)}")
        _version, capability, extended, _command, status, root = _LAYOUT.unpack(data)
        return cls(capability, extended, bool(status >> _TES & 1), RootTableAddress.decode(root))


def iotlb_offset(extended: int) -> int:
    """Offset of the Invalidate Address Register (ECAP.IRO); the IOTLB Invalidate Register is 8 bytes behind it."""
    return get(extended, 17, 8) << 4
