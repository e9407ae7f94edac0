"""Configuration space as data: what a function is, its capabilities, and what a write to it means.

Register layouts are those of the PCI Local Bus Specification 3.0, 6.1, and PCI Express Base Specification 4.0, 7.5.3
(PCI Express capability), 7.7.2 (MSI-X), 7.7.7 (ACS).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SIZE: Final = 4096
_COMMAND, _STATUS, _BARS, _CAPABILITIES, _EXTENDED = 0x04, 0x06, 0x10, 0x34, 0x100
_MEMORY, _BUS_MASTER, _NO_INTX = 0x2, 0x4, 0x400
_HAS_CAPABILITIES = 0x10
_FIRST_CAPABILITY = 0x40
_FLR_CAPABLE, _START_FLR = 1 << 28, 1 << 15
_DEVICE_CONTROL = 0x2810  # at power on: reads of 512 bytes, relaxed ordering and no-snoop allowed
_MOST_VECTORS = 2048


@dataclass(frozen=True, slots=True)
class Pcie:
    """The PCI Express capability of an endpoint.

    Args:
        flr: it can be reset by itself (Function Level Reset).
    """

    flr: bool = True

    NUMBER = 0x10
    LENGTH = 0x3C

    def body(self) -> bytes:
        """What stands behind the two bytes of number and next."""
        body = bytearray(self.LENGTH - 2)
        # Version 2, endpoint. Payloads up to 256 bytes, 8-bit tags, errors by role.
        struct.pack_into("<HI", body, 0, 0x0002, 1 << 15 | 1 << 5 | 1 | (_FLR_CAPABLE if self.flr else 0))
        struct.pack_into("<H", body, 0x06, _DEVICE_CONTROL)
        # A link of 1 lane at 2.5 GT/s, as it can be and as it is.
        struct.pack_into("<IHH", body, 0x0A, 0x0000_0011, 0, 0x0011)
        return bytes(body)

    def writable(self) -> dict[int, int]:
        """Offset of each writable byte in the capability, to its bits: device control without what starts an FLR."""
        return {0x08: 0xFF, 0x09: 0x7F}


@dataclass(frozen=True, slots=True)
class Msix:
    """The MSI-X capability.

    Args:
        vectors: how many, 1 to 2048.
        bar: the BAR that holds table and pending bits; QEMU serves both.
        table: the table's offset in it, a multiple of 8.
        pending: the offset of the pending bits, a multiple of 8.
    """

    vectors: int
    bar: int = 0
    table: int = 0x2000
    pending: int = 0x3000

    NUMBER = 0x11
    LENGTH = 12

    @property
    def places(self) -> tuple[tuple[str, range], ...]:
        """The table and the pending bits in the BAR, which QEMU serves."""
        return (
            ("table", range(self.table, self.table + 16 * self.vectors)),
            ("pending bits", range(self.pending, self.pending + (self.vectors + 63) // 64 * 8)),
        )

    def body(self) -> bytes:
        """What stands behind the two bytes of number and next."""
        return struct.pack("<HII", self.vectors - 1, self.table | self.bar, self.pending | self.bar)

    def writable(self) -> dict[int, int]:
        """Offset of each writable byte in the capability, to its bits: enable and mask all."""
        return {0x03: 0xC0}


@dataclass(frozen=True, slots=True)
class Acs:
    """Access Control Services without any, as an endpoint has them that never sends a request to its neighbours.

    Linux gives such a function an IOMMU group of its own.
    """

    NUMBER = 0x000D
    LENGTH = 8

    def body(self) -> bytes:
        """What stands behind the four bytes of number, version and next."""
        return bytes(4)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a function says it is.

    Args:
        vendor, device: 16 bits each.
        class_code: base class, subclass and programming interface, 24 bits.
        revision: 8 bits.
        capabilities: in the order in which they are linked.
    """

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    capabilities: tuple[Pcie | Msix | Acs, ...] = (Pcie(), Acs())

    def capability(self, kind: type[Pcie | Msix | Acs]) -> Pcie | Msix | Acs | None:
        """The capability of a kind; None when the function has none."""
        return next((one for one in self.capabilities if isinstance(one, kind)), None)

    @property
    def vectors(self) -> int:
        """How many MSI-X vectors it has."""
        msix = self.capability(Msix)
        return msix.vectors if isinstance(msix, Msix) else 0


class ConfigSpace:
    """The 4096 bytes of configuration space.

    Attributes:
        on_flr: called when the driver starts a Function Level Reset.
    """

    def __init__(self, identity: Identity, bars: dict[int, int]) -> None:
        """Lay it out.

        Args:
            identity: what the function says it is.
            bars: index of each BAR to its size in bytes, a power of two; all of 64 bits, so the indexes are even.

        Raises:
            ValueError: a number does not fit, a capability is there twice, or the MSI-X table or its pending bits do
                not lie in a BAR.
        """
        _check(identity)
        _check_msix(identity, bars)
        self.on_flr: Callable[[], None] = lambda: None
        self._identity = identity
        self._bars = bars
        self._mask = bytearray(SIZE)
        self._control: int | None = None  # of the PCI Express capability
        self._data = bytearray(SIZE)
        self.reset()

    def reset(self) -> None:
        """Set everything to what it is at power on."""
        data, mask, identity = bytearray(SIZE), bytearray(SIZE), self._identity
        struct.pack_into("<HHHH", data, 0, identity.vendor, identity.device, 0, 0)
        struct.pack_into("<I", data, 0x08, identity.class_code << 8 | identity.revision)
        struct.pack_into("<HH", data, 0x2C, identity.vendor, identity.device)
        struct.pack_into("<H", mask, _COMMAND, _MEMORY | _BUS_MASTER | _NO_INTX)
        mask[0x0C] = mask[0x3C] = 0xFF  # cache line size, interrupt line
        for index, size in self._bars.items():
            struct.pack_into("<Q", data, _BARS + 4 * index, 0x4)  # memory, 64 bits
            struct.pack_into("<Q", mask, _BARS + 4 * index, -size & (1 << 64) - 16)
        self._link(data, mask)
        self._data, self._mask = data, mask

    def _link(self, data: bytearray, mask: bytearray) -> None:
        """Put the capabilities one behind the other, in both lists."""
        pointer, place, extended, link = _CAPABILITIES, _FIRST_CAPABILITY, _EXTENDED, None
        for one in self._identity.capabilities:
            if isinstance(one, Acs):
                if link is not None:
                    struct.pack_into("<H", data, link + 2, extended << 4 | 1)
                struct.pack_into("<HH", data, extended, one.NUMBER, 1)
                data[extended + 4 : extended + one.LENGTH] = one.body()
                link, extended = extended, extended + one.LENGTH
                continue
            data[pointer] = place
            data[place] = one.NUMBER
            data[place + 2 : place + one.LENGTH] = one.body()
            for offset, bits in one.writable().items():
                mask[place + offset] = bits
            if isinstance(one, Pcie) and one.flr:
                self._control = place + 0x08
            pointer, place = place + 1, place + (one.LENGTH + 3 & ~3)
            struct.pack_into("<H", data, _STATUS, _HAS_CAPABILITIES)

    @property
    def bus_master(self) -> bool:
        """Whether the function may access memory."""
        return bool(self._data[_COMMAND] & _BUS_MASTER)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes from an offset on; the range is inside."""
        return bytes(self._data[offset : offset + count])

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes; those that cannot be written stay. The range is inside."""
        for at, new in enumerate(data, offset):
            bits = self._mask[at]
            self._data[at] = self._data[at] & ~bits | new & bits
        control = self._control
        if control is None or not offset <= control + 1 < offset + len(data):
            return
        if data[control + 1 - offset] & _START_FLR >> 8:
            self.on_flr()


def _check(identity: Identity) -> None:
    """What would only be told as what ``struct`` cannot pack, or as a list that QEMU does not follow."""
    for name, value, bits in (
        ("vendor", identity.vendor, 16),
        ("device", identity.device, 16),
        ("class_code", identity.class_code, 24),
        ("revision", identity.revision, 8),
    ):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} {value:#x}: it has {bits} bits")
    for kind in (Pcie, Msix):
        if sum(isinstance(one, kind) for one in identity.capabilities) > 1:
            raise ValueError(f"the capability {kind.__name__} is there twice")


def _check_msix(identity: Identity, bars: dict[int, int]) -> None:
    """What a driver would find elsewhere, or QEMU refuses with less of a hint."""
    msix = identity.capability(Msix)
    if not isinstance(msix, Msix):
        return
    if not 1 <= msix.vectors <= _MOST_VECTORS:
        raise ValueError(f"{msix.vectors} MSI-X vectors; 1 to {_MOST_VECTORS} are possible")
    (_, table), (_, pending) = msix.places
    size = bars.get(msix.bar, 0)
    for name, place in msix.places:
        if place.start % 8 or place.start < 0 or place.stop > size:
            where = f"{place.start:#x} to {place.stop:#x} of BAR {msix.bar}, which has {size:#x} bytes"
            raise ValueError(f"the MSI-X {name} cannot be at {where}; multiples of 8 inside are possible")
    if table.start < pending.stop and pending.start < table.stop:
        raise ValueError(f"the MSI-X table at {table.start:#x} meets the pending bits at {pending.start:#x}")
