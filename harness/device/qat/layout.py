"""The stub's registers, messages and codes as numbers; docs/qat-device.md explains them.

The guest's driver (harness/agent/qat_layout.py) has the same numbers, and a test compares the two.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

VENDOR: Final = 0x8086
PF: Final = 0x4940
VF: Final = 0x4941
CLASS_CODE: Final = 0x0B4000

BAR: Final = 0
BAR_SIZE: Final = 0x4000
MSIX_TABLE: Final = 0x2000
MSIX_PENDING: Final = 0x3000
VECTORS: Final = 2

# registers of 4 bytes
ID: Final = 0x00
VERSION: Final = 0x04
STATUS: Final = 0x08
LONGEST: Final = 0x0C
LOCAL_SIZE: Final = 0x10
ERROR: Final = 0x14
# registers of 8 bytes
ERROR_ADDRESS: Final = 0x18
REQUESTS: Final = 0x40
RESPONSES: Final = 0x48
BYTES_READ: Final = 0x50
BYTES_WRITTEN: Final = 0x58
DMA_ERRORS: Final = 0x60
INTERRUPTS: Final = 0x68
RESETS: Final = 0x70
# a register of 4 bytes for each ring, RING_REQUEST and RING_RESPONSE
RING_CONFIG: Final = 0x1000
RING_LBASE: Final = 0x1040
RING_UBASE: Final = 0x1080
RING_HEAD: Final = 0x10C0
RING_TAIL: Final = 0x1100
RING_E_STAT: Final = 0x114C
RING_INT_ENABLE: Final = 0x117C

RING_REQUEST: Final = 0
RING_RESPONSE: Final = 1

ID_VALUE: Final = 0x5153_5455  # "UTSQ" in memory
VERSION_VALUE: Final = 1
LONGEST_VALUE: Final = 16 << 20
LOCAL_BYTES: Final = 16 << 20
RING_ENABLE: Final = 1 << 31
RING_SIZE_MASK: Final = 0x1F
"""RING_CONFIG's bits with the binary logarithm of the number of entries."""

LEAST_ENTRIES_LOG2: Final = 1
MOST_ENTRIES_LOG2: Final = 14
ERROR_VECTOR: Final = 0
RESPONSE_VECTOR: Final = 1


class Status(IntFlag):
    """Bits of STATUS."""

    READY = 1
    BUSY = 2
    FATAL = 4


class Cause(IntEnum):
    """Values of ERROR: why the device is FATAL."""

    NONE = 0
    REQUEST_RING_REFUSED = 1
    RESPONSE_RING_REFUSED = 2
    RING_OFFSET = 3
    RING_SIZE = 4
    RING_BASE = 5


REQUEST: Final = struct.Struct("<BBHIQQIIQQ16x")
"""opcode, flags, reserved, reserved, source, destination, source bytes, destination bytes, operand, opaque."""
REQUEST_USED: Final = 48
"""Bytes of a request that have a meaning; the others are 0."""

RESPONSE: Final = struct.Struct("<IIQQQ")
"""code, reserved, result, address, opaque."""
REQUEST_SIZE: Final = 64
RESPONSE_SIZE: Final = 32
EMPTY: Final = 0x7F7F_7F7F
"""What the driver fills the response ring with, as the first and the last word of an entry that has not come yet."""

LIST_HEAD: Final = struct.Struct("<QII")  # reserved, buffers, reserved
LIST_ENTRY: Final = struct.Struct("<IIQ")  # bytes, reserved, address
MOST_BUFFERS: Final = 255


class Opcode(IntEnum):
    """What a request asks for."""

    NOP = 0
    COPY = 1
    FILL = 2
    CRC32 = 3
    COMPARE = 4
    LOAD = 5
    STORE = 6


class RequestFlags(IntFlag):
    """Flags of a request."""

    SOURCE_LIST = 1
    DESTINATION_LIST = 2


class Code(IntEnum):
    """How a request ended."""

    DONE = 0
    READ_REFUSED = 1
    WRITE_REFUSED = 2
    INVALID = 3


class Reason(IntEnum):
    """What is wrong with a request that is INVALID: the response's result."""

    OPCODE = 1
    FLAGS = 2
    RESERVED = 3
    SIZE = 4
    BUFFERS = 5
    ADDRESS = 6
    OPERAND = 7
    UNEQUAL = 8


EQUAL: Final = (1 << 64) - 1
"""The result of COMPARE when no byte differs."""
