"""The part of the IOMMUFD user API (`linux/iommufd.h`), and of VFIO's for device files, that is used here.

Nothing here makes a system call. All structures are in native byte order and begin with their size in bytes.
"""

from __future__ import annotations

import struct

# ioctl numbers: _IO(';', n)
DESTROY = 0x3B80
IOAS_ALLOC = 0x3B81
IOAS_IOVA_RANGES = 0x3B84
IOAS_MAP = 0x3B85
IOAS_UNMAP = 0x3B86

# of VFIO: _IO(';', 100 + n)
DEVICE_BIND_IOMMUFD = 0x3B76
DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
DEVICE_DETACH_IOMMUFD_PT = 0x3B78

MAP_FIXED_IOVA = 1
MAP_WRITEABLE = 2
MAP_READABLE = 4

BIND_FLAG_TOKEN = 1

_DESTROY = struct.Struct("=II")
_ALLOC = struct.Struct("=III")
_RANGES = struct.Struct("=IIIIQQ")
_MAP = struct.Struct("=IIIIQQQ")
_UNMAP = struct.Struct("=IIQQ")
_BIND = struct.Struct("=IIiI")
_BIND_TOKEN = struct.Struct("=IIiIQ")
_ATTACH = struct.Struct("=III")
_DETACH = struct.Struct("=II")

# A written request of `ioas_map`: flags, IOAS, 0, virtual address, size, IOVA, from MAP_PIECE_AT on.
MAP_PIECE = struct.Struct("=IIIQQQ")
MAP_PIECE_AT = 4
# One of `ioas_unmap`: IOVA and size, which the kernel answers with what it unmapped.
UNMAP_RANGE = struct.Struct("=QQ")
UNMAP_RANGE_AT = 8


def destroy(object_id: int) -> bytearray:
    """Return `struct iommu_destroy` (8 bytes)."""
    return bytearray(_DESTROY.pack(_DESTROY.size, object_id))


def ioas_alloc() -> bytearray:
    """Return an empty `struct iommu_ioas_alloc` (12 bytes)."""
    return bytearray(_ALLOC.pack(_ALLOC.size, 0, 0))


def ioas_id(answer: bytearray) -> int:
    """Return the number of the IOAS that the kernel made."""
    return int(_ALLOC.unpack_from(answer)[2])


def iova_ranges(ioas: int, count: int, array: int) -> bytearray:
    """Return `struct iommu_ioas_iova_ranges` (32 bytes) for an array of `count` ranges at the address `array`."""
    return bytearray(_RANGES.pack(_RANGES.size, ioas, count, 0, array, 0))


def range_count(answer: bytearray) -> int:
    """Return how many ranges there are; with EMSGSIZE more than the array has room for."""
    return int(_RANGES.unpack_from(answer)[2])


def iova_alignment(answer: bytearray) -> int:
    """Return what IOVA and size of a mapping must be a multiple of, in bytes; at most a page."""
    return int(_RANGES.unpack_from(answer)[5])


def ranges(array: bytes) -> tuple[tuple[int, int], ...]:
    """Return `(first, last)`, `last` inclusive, of each `struct iommu_iova_range` (16 bytes), ascending."""
    return tuple(sorted(struct.iter_unpack("=QQ", array)))


def ioas_map(ioas: int, flags: int, vaddr: int, size: int, iova: int) -> bytearray:
    """Return `struct iommu_ioas_map` (40 bytes)."""
    return bytearray(_MAP.pack(_MAP.size, flags, ioas, 0, vaddr, size, iova))


def ioas_unmap(ioas: int, iova: int, size: int) -> bytearray:
    """Return `struct iommu_ioas_unmap` (24 bytes)."""
    return bytearray(_UNMAP.pack(_UNMAP.size, ioas, iova, size))


def unmapped_size(answer: bytearray) -> int:
    """Return how many bytes the kernel says it unmapped."""
    return int(_UNMAP.unpack_from(answer)[3])


def bind(iommufd: int, token: int = 0) -> bytearray:
    """Return `struct vfio_device_bind_iommufd`: 16 bytes, or 24 with the address of a VF token of 16 bytes (6.18)."""
    if token:
        return bytearray(_BIND_TOKEN.pack(_BIND_TOKEN.size, BIND_FLAG_TOKEN, iommufd, 0, token))
    return bytearray(_BIND.pack(_BIND.size, 0, iommufd, 0))


def attach(ioas: int) -> bytearray:
    """Return `struct vfio_device_attach_iommufd_pt` without the part for a PASID (12 bytes)."""
    return bytearray(_ATTACH.pack(_ATTACH.size, 0, ioas))


def detach() -> bytearray:
    """Return `struct vfio_device_detach_iommufd_pt` without the part for a PASID (8 bytes)."""
    return bytearray(_DETACH.pack(_DETACH.size, 0))
