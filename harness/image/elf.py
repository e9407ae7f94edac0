"""The few facts of ELF files that an image needs: libraries that a program names, sections, a module's information."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.errors import InfrastructureError

_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_SHT_DYNAMIC = 6
_SHT_NOBITS = 8
_DT_NEEDED = 1


@dataclass(frozen=True, slots=True)
class Section:
    """A section of an ELF file.

    Args:
        name: e.g. ``.modinfo``.
        kind: ``sh_type``.
        offset: of its first byte in the file.
        size: in bytes.
        link: ``sh_link``: for a dynamic section the index of the section with its strings.
    """

    name: str
    kind: int
    offset: int
    size: int
    link: int


def is_elf(data: bytes) -> bool:
    """True for a 64-bit little-endian ELF file."""
    return data[:6] == b"\x7fELF\x02\x01"


def sections(data: bytes) -> list[Section]:
    """All sections in the file's order.

    Raises:
        InfrastructureError: it is no 64-bit little-endian ELF file, or it is cut off.
    """
    if not is_elf(data):
        raise InfrastructureError("a file of the packages is no 64-bit ELF file")
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        raw = [_SECTION.unpack_from(data, table + index * size) for index in range(count)]
        names = raw[names_index][4] if raw else 0
        found = [Section(_string(data, names + f[0]), f[1], f[4], f[5], f[6]) for f in raw]
    except (struct.error, IndexError, ValueError) as error:
        raise InfrastructureError("an ELF file of the packages is cut off") from error
    if any(s.offset + s.size > len(data) for s in found if s.kind != _SHT_NOBITS):
        raise InfrastructureError("an ELF file of the packages is cut off")
    return found


def needed(data: bytes) -> list[str]:
    """Names of the shared libraries that a program or library asks for (DT_NEEDED); empty for a static program.

    Raises:
        InfrastructureError: as :func:`sections`; or the dynamic section is damaged.
    """
    found = sections(data)
    for dynamic in found:
        if dynamic.kind == _SHT_DYNAMIC and dynamic.link < len(found):
            strings = found[dynamic.link].offset
            try:
                pairs = _DYNAMIC.iter_unpack(data[dynamic.offset : dynamic.offset + dynamic.size])
                return [_string(data, strings + value) for tag, value in pairs if tag == _DT_NEEDED]
            except (struct.error, ValueError) as error:
                raise InfrastructureError(f"an ELF file's dynamic section is damaged: {error}") from error
    return []


def section(data: bytes, name: str) -> bytes:
    """The bytes of a section, empty when there is none.

    Raises:
        InfrastructureError: as :func:`sections`.
    """
    for found in sections(data):
        if found.name == name:
            return data[found.offset : found.offset + found.size]
    return b""


def module_info(data: bytes) -> dict[str, str]:
    """The ``.modinfo`` of a kernel module: ``depends``, ``name`` and so on; of repeated keys the last.

    Raises:
        InfrastructureError: as :func:`sections`.
    """
    info = {}
    for item in section(data, ".modinfo").split(b"\0"):
        key, _, value = item.decode("utf-8", errors="replace").partition("=")
        if key:
            info[key] = value
    return info


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("utf-8", errors="replace")
