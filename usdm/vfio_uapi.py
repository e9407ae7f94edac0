"""The part of the VFIO user API (`linux/vfio.h`) that is used here: numbers, and structures to and from bytes.

Nothing here makes a system call. All structures are in native byte order and begin with `argsz`, their size in bytes.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

API_VERSION = 0

# ioctl numbers: _IO(';', 100 + n)
GET_API_VERSION = 0x3B64
CHECK_EXTENSION = 0x3B65
SET_IOMMU = 0x3B66
GROUP_GET_STATUS = 0x3B67
GROUP_SET_CONTAINER = 0x3B68
GROUP_UNSET_CONTAINER = 0x3B69
GROUP_GET_DEVICE_FD = 0x3B6A
DEVICE_GET_INFO = 0x3B6B
DEVICE_GET_REGION_INFO = 0x3B6C
DEVICE_GET_IRQ_INFO = 0x3B6D
DEVICE_SET_IRQS = 0x3B6E
DEVICE_RESET = 0x3B6F
IOMMU_GET_INFO = 0x3B70
IOMMU_MAP_DMA = 0x3B71
IOMMU_UNMAP_DMA = 0x3B72
DEVICE_FEATURE = 0x3B75

# extensions, and the values of SET_IOMMU
TYPE1_IOMMU = 1
TYPE1V2_IOMMU = 3
NOIOMMU_IOMMU = 8

GROUP_FLAGS_VIABLE = 1
GROUP_FLAGS_CONTAINER_SET = 2

MAP_FLAG_READ = 1
MAP_FLAG_WRITE = 2

INFO_PGSIZES = 1
INFO_CAPS = 2
CAP_IOVA_RANGE = 1
CAP_DMA_AVAIL = 3

REGION_FLAG_READ = 1
REGION_FLAG_WRITE = 2
REGION_FLAG_MMAP = 4

# region and interrupt indexes of vfio-pci
PCI_BAR0_REGION = 0
PCI_CONFIG_REGION = 7
PCI_INTX_IRQ = 0
PCI_MSI_IRQ = 1
PCI_MSIX_IRQ = 2
PCI_REQ_IRQ = 4  # the kernel asks for the device back

IRQ_SET_DATA_NONE = 1
IRQ_SET_DATA_EVENTFD = 4
IRQ_SET_ACTION_TRIGGER = 32

# What DEVICE_FEATURE is about is in the low 16 bits of its flags.
FEATURE_PCI_VF_TOKEN = 0
FEATURE_SET = 1 << 17
VF_TOKEN_SIZE = 16

_MAP = struct.Struct("=IIQQQ")
_UNMAP = struct.Struct("=IIQQ")
_SIZE = struct.Struct("=Q")

# Without the head: vaddr, IOVA, size of a `map_dma`; IOVA, size of an `unmap_dma`; both from RANGE_AT on.
MAP_RANGE = struct.Struct("=QQQ")
UNMAP_RANGE = struct.Struct("=QQ")
RANGE_AT = 8
# The same with the flags before it, from FLAGS_AT on.
MAP_PIECE = struct.Struct("=IQQQ")
FLAGS_AT = 4
_INFO = struct.Struct("=IIQII")
_CAP = struct.Struct("=HHI")
_STATUS = struct.Struct("=II")
_DEVICE = struct.Struct("=IIIII")
_REGION = struct.Struct("=IIIIQQ")
_IRQ = struct.Struct("=IIII")
_IRQ_SET = struct.Struct("=IIIII")
_FEATURE = struct.Struct("=II")

INFO_SIZE = 4096


class IommuInfo:
    """What a container says about its IOMMU.

    Attributes:
        page_sizes: Bit n is set when pages of 2^n bytes can be mapped.
        iova_ranges: Usable IOVAs, each `(first, last)` with `last` inclusive, ascending; None when not told.
        dma_avail: How many more mappings the container takes; None when not told.
    """

    __slots__ = ("dma_avail", "iova_ranges", "page_sizes")

    def __init__(self, page_sizes: int, iova_ranges: tuple[tuple[int, int], ...] | None, dma_avail: int | None) -> None:
        self.page_sizes = page_sizes
        self.iova_ranges = iova_ranges
        self.dma_avail = dma_avail


class RegionInfo:
    """One region of a device: `flags`, `size` in bytes, and `offset` of its first byte in the device's file."""

    __slots__ = ("flags", "offset", "size")

    def __init__(self, flags: int, size: int, offset: int) -> None:
        self.flags = flags
        self.size = size
        self.offset = offset


def map_dma(vaddr: int, iova: int, size: int, flags: int) -> bytearray:
    """Return `struct vfio_iommu_type1_dma_map` (32 bytes)."""
    return bytearray(_MAP.pack(_MAP.size, flags, vaddr, iova, size))


def unmap_dma(iova: int, size: int) -> bytearray:
    """Return `struct vfio_iommu_type1_dma_unmap` (24 bytes)."""
    return bytearray(_UNMAP.pack(_UNMAP.size, 0, iova, size))


def unmapped_size(answer: bytearray) -> int:
    """Return how many bytes the kernel says it unmapped."""
    size: int = _SIZE.unpack_from(answer, 16)[0]
    return size


def iommu_info_request(size: int = INFO_SIZE) -> bytearray:
    """Return an empty `struct vfio_iommu_type1_info` with room for capabilities, `size` bytes together."""
    request = bytearray(size)
    struct.pack_into("=I", request, 0, size)
    return request


def needed_size(answer: bytearray) -> int:
    """Return the `argsz` that the kernel wrote: more than the buffer when the capabilities did not fit."""
    return int(struct.unpack_from("=I", answer)[0])


def iommu_info(answer: bytearray) -> IommuInfo:
    """Read the answer of `IOMMU_GET_INFO` with its chain of capabilities.

    A chain that points outside the buffer or backwards ends there.
    """
    _, flags, page_sizes, offset, _ = _INFO.unpack_from(answer)
    ranges: tuple[tuple[int, int], ...] | None = None
    avail = None
    last = 0
    if not flags & INFO_CAPS:
        offset = 0
    while last < offset <= len(answer) - _CAP.size:
        last = offset
        kind, _, offset = _CAP.unpack_from(answer, last)
        body = last + _CAP.size
        if kind == CAP_IOVA_RANGE:
            (count,) = struct.unpack_from("=I", answer, body)
            ranges = tuple(sorted(struct.iter_unpack("=QQ", bytes(answer[body + 8 : body + 8 + 16 * count]))))
        elif kind == CAP_DMA_AVAIL:
            (avail,) = struct.unpack_from("=I", answer, body)
    return IommuInfo(page_sizes if flags & INFO_PGSIZES else 0, ranges, avail)


def group_status_request() -> bytearray:
    """Return an empty `struct vfio_group_status` (8 bytes)."""
    return bytearray(_STATUS.pack(_STATUS.size, 0))


def group_flags(answer: bytearray) -> int:
    """Return the flags of a group: viable, container set."""
    return int(_STATUS.unpack_from(answer)[1])


def device_info_request() -> bytearray:
    """Return an empty `struct vfio_device_info` (20 bytes)."""
    return bytearray(_DEVICE.pack(_DEVICE.size, 0, 0, 0, 0))


def device_counts(answer: bytearray) -> tuple[int, int]:
    """Return the numbers of regions and of interrupts of a device."""
    _, _, regions, irqs, _ = _DEVICE.unpack_from(answer)
    return regions, irqs


def region_info_request(index: int) -> bytearray:
    """Return an empty `struct vfio_region_info` (32 bytes) for the region `index`."""
    return bytearray(_REGION.pack(_REGION.size, 0, index, 0, 0, 0))


def region_info(answer: bytearray) -> RegionInfo:
    """Read the answer of `DEVICE_GET_REGION_INFO`."""
    _, flags, _, _, size, offset = _REGION.unpack_from(answer)
    return RegionInfo(flags, size, offset)


def irq_info_request(index: int) -> bytearray:
    """Return an empty `struct vfio_irq_info` (16 bytes) for the interrupt `index`."""
    return bytearray(_IRQ.pack(_IRQ.size, 0, index, 0))


def irq_count(answer: bytearray) -> int:
    """Return how many vectors an interrupt index has."""
    return int(_IRQ.unpack_from(answer)[3])


def irq_set(index: int, eventfds: Sequence[int]) -> bytearray:
    """Return `struct vfio_irq_set`: signal `eventfds[n]` on vector n; an empty sequence turns the interrupt off."""
    kind = IRQ_SET_DATA_EVENTFD if eventfds else IRQ_SET_DATA_NONE
    data = struct.pack(f"={len(eventfds)}i", *eventfds)
    head = _IRQ_SET.pack(_IRQ_SET.size + len(data), kind | IRQ_SET_ACTION_TRIGGER, index, 0, len(eventfds))
    return bytearray(head + data)


def vf_token_set(token: bytes) -> bytearray:
    """Return `struct vfio_device_feature` that sets the VF token of a PF: 16 bytes, in the order of their digits."""
    head = _FEATURE.pack(_FEATURE.size + VF_TOKEN_SIZE, FEATURE_SET | FEATURE_PCI_VF_TOKEN)
    return bytearray(head + token)


def uuid(token: bytes) -> str:
    """Return a VF token of 16 bytes in the usual form, five groups of digits."""
    digits = token.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def device_name(bdf: str, vf_token: bytes | None = None) -> bytearray:
    """Return what `GROUP_GET_DEVICE_FD` takes: the address with its domain, and a VF's token as a UUID behind it."""
    return bytearray(f"{bdf}\0".encode() if vf_token is None else f"{bdf} vf_token={uuid(vf_token)}\0".encode())
