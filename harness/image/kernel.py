"""The kernel as an ELF file out of its compressed image.

QEMU starts it at its PVH entry, and nothing unpacks it again under emulation.
"""

from __future__ import annotations

import lzma
import struct
import zlib

import zstandard

from harness.errors import InfrastructureError
from harness.image.elf import is_elf, sections

# Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length of the setup header.
_SETUP_SECTS = 0x1F1
_PAYLOAD = 0x248
_SECTOR = 512
_BOOT_FLAG = (0x1FE, b"\x55\xaa")
_HEADER_MAGIC = (0x202, b"HdrS")
_SHT_NOTE = 7
# XEN_ELFNOTE_PHYS32_ENTRY: the entry point of the PVH boot protocol.
_PVH_NOTE = 18


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage.

    Args:
        image: the file that Debian installs as ``vmlinuz-RELEASE``.

    Raises:
        InfrastructureError: it is no bzImage, is compressed in an unknown way, or has no PVH entry.
    """
    if is_elf(image):
        return _checked(image)
    if len(image) < _PAYLOAD + 8 or any(image[at : at + len(mark)] != mark for at, mark in (_BOOT_FLAG, _HEADER_MAGIC)):
        raise InfrastructureError("the kernel's file is no bzImage")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = ((image[_SETUP_SECTS] or 4) + 1) * _SECTOR + offset
    payload = image[start : start + length]
    if len(payload) < length:
        raise InfrastructureError("the kernel's file is cut off")
    return _checked(_decompress(payload))


def _decompress(payload: bytes) -> bytes:
    # Behind the stream the kernel's build appends the unpacked size: one-shot calls would refuse that.
    try:
        if payload.startswith(b"\x28\xb5\x2f\xfd"):
            return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
        if payload.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor().decompress(payload)
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(payload)
    except (zstandard.ZstdError, lzma.LZMAError, zlib.error) as error:
        raise InfrastructureError(f"the kernel's payload cannot be unpacked: {error}") from error
    raise InfrastructureError(f"the kernel is compressed in an unknown way (it starts with {payload[:4].hex()})")


def _checked(elf: bytes) -> bytes:
    if not is_elf(elf):
        raise InfrastructureError("the kernel's payload is no 64-bit ELF file")
    notes = (elf[found.offset : found.offset + found.size] for found in sections(elf) if found.kind == _SHT_NOTE)
    if not any(_note_in(note) for note in notes):
        raise InfrastructureError("the kernel has no PVH entry (CONFIG_PVH), so QEMU cannot start it directly")
    return elf


def _note_in(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size].rstrip(b"\0")
        if name == b"Xen" and kind == _PVH_NOTE:
            return True
        at += 12 + (name_size + 3) // 4 * 4 + (data_size + 3) // 4 * 4
    return False
