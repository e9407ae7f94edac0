"""Requests to forget what is cached, as descriptors of the queue and as values of the registers.

Intel Virtualization Technology for Directed I/O, 6.5 "Invalidation of Translation Caches". A descriptor has 16 bytes.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from harness.machine.vtd.bits import PAGE, put

DESCRIPTOR, WIDE = 16, 32
"""Bytes of a descriptor; with IQA.DW it has zeros behind."""

_TWO = struct.Struct("<2Q")
_CONTEXT, _IOTLB, _INTERRUPT, _WAIT, _PASID_IOTLB, _PASIDS = 1, 2, 4, 5, 6, 7
_BUSY = 1 << 63


class Scope(IntEnum):
    """Granularity: what is forgotten. The last one is a device for context entries, pages for translations."""

    GLOBAL = 1
    DOMAIN = 2
    SELECTIVE = 3


def _pages(address: int, order: int) -> int:
    """The second word of a page-selective invalidation: 2 to the power of ``order`` pages from ``address``."""
    if not 0 <= order < 64 or address % (PAGE << order) or not 0 <= address < 1 << 64:
        raise ValueError(f"{address:#x} is not the address of {1 << order} pages")
    return address | order


def context_cache(scope: Scope, domain: int = 0, source_id: int = 0) -> bytes:
    """A Context-Cache Invalidate Descriptor; raises ValueError."""
    return _TWO.pack(_CONTEXT | scope << 4 | put(domain, 31, 16) | put(source_id, 47, 32), 0)


def iotlb(scope: Scope, domain: int = 0, address: int = 0, order: int = 0) -> bytes:
    """An IOTLB Invalidate Descriptor; pages are 2 to the power of ``order``, aligned to as many; raises ValueError."""
    second = _pages(address, order) if scope is Scope.SELECTIVE else 0
    return _TWO.pack(_IOTLB | scope << 4 | put(domain, 31, 16), second)


def pasid_iotlb(domain: int, pasid: int = 0) -> bytes:
    """A PASID-based IOTLB Invalidate Descriptor for all pages of a PASID; raises ValueError."""
    return _TWO.pack(_PASID_IOTLB | 2 << 4 | put(domain, 31, 16) | put(pasid, 51, 32), 0)


def pasid_cache() -> bytes:
    """A PASID-Cache Invalidate Descriptor for all PASIDs of all domains."""
    return _TWO.pack(_PASIDS | 3 << 4, 0)


def interrupt_entry_cache() -> bytes:
    """An Interrupt Entry Cache Invalidate Descriptor for all entries."""
    return _TWO.pack(_INTERRUPT, 0)


def wait(address: int, value: int) -> bytes:
    """An Invalidation Wait Descriptor that writes 32 bits when all before it is done; raises ValueError."""
    if address % 4 or not 0 <= address < 1 << 64:
        raise ValueError(f"{address:#x} is not the address of 32 bits")
    return _TWO.pack(_WAIT | 1 << 5 | put(value, 63, 32), address)


def context_command(scope: Scope, domain: int = 0, source_id: int = 0) -> int:
    """The Context Command Register (CCMD) that asks for it; raises ValueError."""
    return _BUSY | scope << 61 | put(source_id, 31, 16) | put(domain, 15, 0)


def iotlb_command(scope: Scope, domain: int = 0) -> int:
    """The IOTLB Invalidate Register that asks for it; raises ValueError."""
    return _BUSY | scope << 60 | put(domain, 47, 32)


def invalidate_address(address: int, order: int = 0) -> int:
    """The Invalidate Address Register beside it; raises ValueError."""
    return _pages(address, order)
