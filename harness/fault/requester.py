"""Requester IDs."""

from __future__ import annotations


def requester_name(sid: int) -> str:
    """A 16-bit requester ID as ``bus:device.function``."""
    return f"{sid >> 8 & 0xFF:02x}:{sid >> 3 & 0x1F:02x}.{sid & 7}"
