"""Registers and messages of the QAT-like device; docs/qat-device.md is their reference."""

from __future__ import annotations

import struct

VENDOR, PF, VF = 0x8086, 0x4940, 0x4941

ID, STATUS, LONGEST, LOCAL_SIZE, ERROR, ERROR_ADDRESS = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x18
REQUESTS, RESPONSES, BYTES_READ, BYTES_WRITTEN = 0x40, 0x48, 0x50, 0x58
DMA_ERRORS, INTERRUPTS, RESETS = 0x60, 0x68, 0x70
RING_CONFIG, RING_LBASE, RING_UBASE, RING_HEAD, RING_TAIL = 0x1000, 0x1040, 0x1080, 0x10C0, 0x1100
RING_INT_ENABLE = 0x117C
RING_REQUEST, RING_RESPONSE = 0, 1
VECTORS = 2

ID_VALUE = 0x5153_5455
RING_ENABLE = 1 << 31
READY, BUSY, FATAL = 1, 2, 4
CAUSES = ("NONE", "REQUEST_RING_REFUSED", "RESPONSE_RING_REFUSED", "RING_OFFSET", "RING_SIZE", "RING_BASE")

# opcode, flags, 2 reserved, source, destination, bytes of each, operand, opaque, reserved
REQUEST = struct.Struct("<BBHIQQIIQQ16x")
# code, reserved, result, address, opaque
RESPONSE = struct.Struct("<IIQQQ")
REQUEST_SIZE, RESPONSE_SIZE = 64, 32
EMPTY = 0x7F7F_7F7F
# reserved, buffers, reserved; then for each buffer: bytes, reserved, address
LIST_HEAD = struct.Struct("<QII")
LIST_ENTRY = struct.Struct("<IIQ")
MOST_BUFFERS = 255

NOP, COPY, FILL, CRC32, COMPARE, LOAD, STORE = range(7)
SOURCE_LIST, DESTINATION_LIST = 1, 2
DONE, READ_REFUSED, WRITE_REFUSED, INVALID = range(4)
CODES = ("done", "read_refused", "write_refused", "invalid")
REASONS = ("", "OPCODE", "FLAGS", "RESERVED", "SIZE", "BUFFERS", "ADDRESS", "OPERAND", "UNEQUAL")
EQUAL = (1 << 64) - 1
