"""Messages of the vfio-user protocol, version 0.0, as bytes (QEMU, docs/interop/vfio-user.rst).

A message is a header of 16 bytes and a body. Integers are little endian.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

HEADER: Final = struct.Struct("<HHIII")
MAX_TRANSFER: Final = 1 << 20
MAX_FDS: Final = 8
PAGE: Final = 4096
MAX_BODY: Final = MAX_TRANSFER + 64
"""Bytes of the longest body that is taken: the data of one transfer, and what stands before them."""


class Command(IntEnum):
    """What a message is about."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


class Flags(IntFlag):
    """The header's flags."""

    REPLY = 1
    TYPE = 0xF
    NO_REPLY = 0x10
    ERROR = 0x20


class Access(IntFlag):
    """What a device may do with a mapping."""

    READ = 1
    WRITE = 2


MAP: Final = struct.Struct("<IIQQQ")  # argsz, flags, offset, address, size
UNMAP: Final = struct.Struct("<IIQQ")  # argsz, flags, address, size
UNMAP_ALL: Final = 2
DEVICE_INFO: Final = struct.Struct("<IIII")  # argsz, flags, regions, irqs
REGION_INFO: Final = struct.Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
IRQ_INFO: Final = struct.Struct("<IIII")  # argsz, flags, index, count
SET_IRQS: Final = struct.Struct("<IIIII")  # argsz, flags, index, start, count
REGION_ACCESS: Final = struct.Struct("<QII")  # offset, region, count
DMA_ACCESS: Final = struct.Struct("<QQ")  # address, count
_VERSION: Final = struct.Struct("<HH")
_TYPE: Final = int(Flags.TYPE)

IRQ_DATA_NONE: Final = 1
IRQ_DATA_EVENTFD: Final = 4
IRQ_ACTION_TRIGGER: Final = 0x20
"""SET_IRQS' flags: what comes with it, and what it is for. The others (a byte for each, mask, unmask) are refused."""


class Header(NamedTuple):
    """A message's header.

    Args:
        id: repeated in the reply.
        command: a :class:`Command`, or a number that is none.
        size: bytes of the whole message, header included.
        flags: see :class:`Flags`.
        error: an errno, in a reply with the flag ERROR.
    """

    id: int
    command: int
    size: int
    flags: int
    error: int


class ProtocolError(Exception):
    """The other side does not keep to the protocol; nothing more can be read from it."""


def header(data: bytes | bytearray | memoryview) -> Header:
    """The header of 16 bytes.

    Raises:
        ProtocolError: its size is none that a message can have, or its type is neither command nor reply.
    """
    found = Header(*HEADER.unpack(data))
    if not HEADER.size <= found.size <= HEADER.size + MAX_BODY:
        raise ProtocolError(f"a message of {found.size} bytes; {HEADER.size} to {HEADER.size + MAX_BODY} are possible")
    if found.flags & _TYPE > 1:
        raise ProtocolError(f"a message of the type {found.flags & _TYPE}; 0 is a command, 1 a reply")
    return found


def message(number: int, command: int, body: bytes = b"", *, flags: int = 0, error: int = 0) -> bytes:
    """A whole message."""
    return HEADER.pack(number, command, HEADER.size + len(body), flags, error) + body


class Version(NamedTuple):
    """What a client says first.

    Args:
        major, minor: of the protocol.
        max_transfer: bytes that it takes in one message's data, at most :data:`MAX_TRANSFER`.
    """

    major: int
    minor: int
    max_transfer: int


def version(body: bytes | memoryview) -> Version:
    """A client's version out of the body of its first message; the JSON behind the numbers may be missing.

    Raises:
        ProtocolError: it speaks another major version, or says nothing that can be read.
    """
    if len(body) < _VERSION.size:
        raise ProtocolError(f"a version of {len(body)} bytes")
    major, minor = _VERSION.unpack_from(body)
    if major:
        raise ProtocolError(f"the client speaks version {major} of the protocol, this is version 0")
    try:
        said = json.loads(bytes(body[_VERSION.size :]).rstrip(b"\0") or b"{}")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the client's capabilities are no JSON: {error}") from None
    capabilities = said.get("capabilities", {}) if isinstance(said, dict) else None
    if not isinstance(capabilities, dict):
        raise ProtocolError("the client's capabilities are no JSON object")
    most = capabilities.get("max_data_xfer_size", MAX_TRANSFER)
    if type(most) is not int or most < PAGE:
        raise ProtocolError(f"the client takes max_data_xfer_size {most!r}, and a page must fit")
    return Version(major, minor, min(most, MAX_TRANSFER))


def version_reply() -> bytes:
    """The answer to a client's version, as a body. QEMU takes no max_dma_maps above this one."""
    offered = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER, "pgsizes": PAGE, "max_dma_maps": 65535}
    return _VERSION.pack(0, 0) + json.dumps({"capabilities": offered}).encode() + b"\0"
