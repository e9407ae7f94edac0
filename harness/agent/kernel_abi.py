"""ioctls of the test module `dma_iova_test`: the layout of images/module/dma_iova_test/dma_iova_test.h."""

from __future__ import annotations

import struct

STATES = 256
"""Number of states that an open file has."""

_CALL = struct.Struct("=IIQQQQqQQ")
_INFO = struct.Struct("=QQIIIIII")
_WRITE, _READ = 1, 2
_TYPE = ord("u")
_WORD = (1 << 64) - 1


def _request(way: int, number: int, size: int) -> int:
    """Return an ioctl's number, as <linux/ioctl.h> composes it: bits of direction, size, type and number."""
    return way << 30 | size << 16 | _TYPE << 8 | number


(TRY_ALLOC, LINK, SYNC, UNLINK, FREE, DESTROY, MAP_SINGLE, UNMAP_SINGLE, READ_STATE) = (
    _request(_WRITE | _READ, number, _CALL.size) for number in range(9)
)
INFO = _request(_READ, 16, _INFO.size)
SET_MASK = _request(_WRITE, 17, 8)
SET_UNTRUSTED = _request(_WRITE, 18, 4)
SET_MIN_ALIGN_MASK = _request(_WRITE, 19, 4)


class Answer:
    """What the module says of a call.

    Attributes:
        result: What the kernel's function returned, as a signed number. Of FREE and DESTROY, which are void, 1 when the
            state still looks as if it had a range; of other void functions 0.
        addr: The state's `addr` after the call.
        size: The state's `__size` after the call, with the kernel's own flags in it.
    """

    __slots__ = ("addr", "result", "size")

    def __init__(self, data: bytes | bytearray) -> None:
        *_, self.result, self.addr, self.size = _CALL.unpack(data)

    @property
    def word(self) -> int:
        """The result as a DMA address."""
        return int(self.result) & _WORD


class Info:
    """The device as the kernel's DMA mapping sees it.

    Attributes:
        merge_boundary: Granule - 1; 0 without an IOMMU.
        dma_mask: The highest address that it can give.
        domain_type: Type of its IOMMU domain, as the kernel composes it of bits; 0 without a domain.
        use_iommu: Its addresses are translated.
        min_align_mask: Which bits of an address a bounce buffer keeps.
        untrusted: The kernel lets it see nothing but what is mapped, and bounces the rest.
        pinned: Pages of the program that are pinned for it now.
    """

    __slots__ = ("dma_mask", "domain_type", "merge_boundary", "min_align_mask", "pinned", "untrusted", "use_iommu")

    def __init__(self, data: bytes | bytearray) -> None:
        self.merge_boundary, self.dma_mask, self.domain_type, *rest = _INFO.unpack(data)
        use_iommu, self.min_align_mask, untrusted, self.pinned, _ = rest
        self.use_iommu, self.untrusted = bool(use_iommu), bool(untrusted)


def call_request(
    state: int = 0, *, direction: int = 0, address: int = 0, offset: int = 0, size: int = 0, attrs: int = 0
) -> bytearray:
    """Return the argument of a call; raises `struct.error` for what the C types do not hold."""
    return bytearray(_CALL.pack(state, direction, address, offset, size, attrs, 0, 0, 0))


def info_request() -> bytearray:
    """Return room for the answer of `INFO`."""
    return bytearray(_INFO.size)


def mask_request(mask: int) -> bytearray:
    """Return the argument of `SET_MASK`."""
    return bytearray(mask.to_bytes(8, "little"))


def flag_request(value: int) -> bytearray:
    """Return the argument of `SET_UNTRUSTED` and `SET_MIN_ALIGN_MASK`."""
    return bytearray(int(value).to_bytes(4, "little"))
