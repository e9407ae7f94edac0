"""The ELF kernel out of a bzImage, and every way in which a file may be no kernel that QEMU can start."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable

import pytest
import zstandard

from harness.errors import InfrastructureError
from harness.image.kernel import extract_vmlinux

XEN = b"Xen\0"
PVH = 18


def note(kind: int, owner: bytes = XEN, data: bytes = bytes(8)) -> bytes:
    padded = owner + bytes(-len(owner) % 4) + data + bytes(-len(data) % 4)
    return struct.pack("<III", len(owner), len(data), kind) + padded


def vmlinux(notes: bytes) -> bytes:
    """An ELF file with one section of notes. The text makes it long enough to be cut off in the middle."""
    text = bytes(range(256)) * 16
    names = b"\0.notes\0.shstrtab\0"
    at = 64 + len(text)
    table = at + len(notes) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 7, 0, 0, at, len(notes), 0, 0, 4, 0)
    sections += struct.pack("<IIQQQQIIQQ", 8, 3, 0, 0, at + len(notes), len(names), 0, 0, 1, 0)
    return header + text + notes + names + sections


GOOD = vmlinux(note(6, XEN, b"linux\0") + note(1, b"Linux\0") + note(PVH))


def bzimage(payload: bytes, setup_sects: int = 3, offset: int = 0x40) -> bytes:
    """A bzImage as Documentation/arch/x86/boot.rst describes it."""
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    setup[0x1F1] = setup_sects
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + b"\x90" * offset + payload + b"behind the payload"


def with_size(packed: bytes) -> bytes:
    """The kernel's build appends the unpacked size to the stream."""
    return packed + struct.pack("<I", len(GOOD))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "gzip": gzip.compress,
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("setup_sects", [0, 3, 39])
def test_the_kernel_comes_out_whole(packer: str, setup_sects: int) -> None:
    assert extract_vmlinux(bzimage(with_size(PACKERS[packer](GOOD)), setup_sects)) == GOOD


def test_a_kernel_that_is_an_elf_file_already_is_taken_as_it_is() -> None:
    assert extract_vmlinux(GOOD) == GOOD


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        note(6, XEN, b"linux\0"),
        note(PVH, b"Linux\0"),
        note(PVH)[:8],
    ],
    ids=["none", "another kind", "another owner", "cut off"],
)
def test_a_kernel_without_a_pvh_entry_is_refused(notes: bytes) -> None:
    with pytest.raises(InfrastructureError, match="PVH"):
        extract_vmlinux(bzimage(gzip.compress(vmlinux(notes))))


@pytest.mark.parametrize(
    ("magic", "shown"), [(b"\x02\x21\x4c\x18", "02214c18"), (b"\x5d\0\0\0", "5d000000"), (b"BZh9", "425a6839")]
)
def test_an_unknown_compression_is_told_with_its_first_bytes(magic: bytes, shown: str) -> None:
    with pytest.raises(InfrastructureError, match=f"unknown way.*{shown}"):
        extract_vmlinux(bzimage(magic + bytes(100)))


@pytest.mark.parametrize(
    "data",
    [b"", b"MZ", bytes(4096), b"#!/bin/sh\n" * 100, b"\x7fELF"],
    ids=["empty", "short", "zeros", "text", "magic"],
)
def test_a_file_that_is_no_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(InfrastructureError, match="no bzImage"):
        extract_vmlinux(data)


def test_a_cut_off_file_is_refused() -> None:
    image = bzimage(with_size(gzip.compress(GOOD)))
    with pytest.raises(InfrastructureError, match="kernel's file is cut off"):
        extract_vmlinux(image[:-200])


@pytest.mark.parametrize("packer", PACKERS)
def test_a_stream_that_ends_too_early_is_refused(packer: str) -> None:
    packed = PACKERS[packer](GOOD)
    with pytest.raises(InfrastructureError):
        extract_vmlinux(bzimage(packed[: len(packed) // 2]))


@pytest.mark.parametrize("packer", PACKERS)
def test_a_damaged_stream_is_refused(packer: str) -> None:
    packed = PACKERS[packer](GOOD)
    with pytest.raises(InfrastructureError):
        extract_vmlinux(bzimage(packed[:8] + b"\xff" * 40))


def test_a_payload_that_is_no_elf_file_is_refused() -> None:
    with pytest.raises(InfrastructureError, match="no 64-bit ELF"):
        extract_vmlinux(bzimage(gzip.compress(b"no ELF file" * 100)))
