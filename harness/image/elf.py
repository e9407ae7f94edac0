"""The few facts of ELF files that an image needs: libraries that a program names, and a module's information."""

from __future__ import annotations

import struct

from harness.errors import InfrastructureError

_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_SHT_DYNAMIC = 6
_DT_NEEDED = 1


def is_elf(data: bytes) -> bool:
    """True for a 64-bit little-endian ELF file."""
    return data[:6] == b"\x7fELF\x02\x01"


def needed(data: bytes) -> list[str]:
    """Names of the shared libraries that a program or library asks for (DT_NEEDED); empty for a static program."""
    for kind, offset, size, strings in _sections(data):
        if kind != _SHT_DYNAMIC:
            continue
        names = []
        for tag, value in _DYNAMIC.iter_unpack(data[offset : offset + size]):
            if tag == _DT_NEEDED:
                names.append(_string(data, strings + value))
        return names
    return []


def section(data: bytes, name: str) -> bytes:
    """The bytes of a section, empty when there is none."""
    table, size, count, names_index = _header(data)
    _, _, _, _, names, *_ = _SECTION.unpack_from(data, table + names_index * size)
    for index in range(count):
        fields = _SECTION.unpack_from(data, table + index * size)
        if _string(data, names + fields[0]) == name:
            return data[fields[4] : fields[4] + fields[5]]
    return b""


def module_info(data: bytes) -> dict[str, str]:
    """The ``.modinfo`` of a kernel module: ``depends``, ``name`` and so on; of repeated keys the last.

    Raises:
        InfrastructureError: it is no ELF file.
    """
    if not is_elf(data):
        raise InfrastructureError("a kernel module is no ELF file")
    info = {}
    for item in section(data, ".modinfo").split(b"\0"):
        key, _, value = item.decode("utf-8", errors="replace").partition("=")
        if key:
            info[key] = value
    return info


def _header(data: bytes) -> tuple[int, int, int, int]:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    return table, size, count, names_index


def _sections(data: bytes) -> list[tuple[int, int, int, int]]:
    """(type, offset, size, offset of the linked section) of every section."""
    table, size, count, _ = _header(data)
    raw = [_SECTION.unpack_from(data, table + index * size) for index in range(count)]
    return [(f[1], f[4], f[5], raw[f[6]][4] if f[6] < count else 0) for f in raw]


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("utf-8", errors="replace")
