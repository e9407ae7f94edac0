"""A range of reserved IOVAs, the links in it, and the rules of both."""

from __future__ import annotations

import errno
from bisect import bisect_left, insort

from usdm import check, dma_errors, errors
from usdm.limits import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from usdm.dma_domain import Domain, Piece
    from usdm.errors import UsdmError

DMA_BIDIRECTIONAL, DMA_TO_DEVICE, DMA_FROM_DEVICE, DMA_NONE = 0, 1, 2, 3

DMA_ATTR_SKIP_CPU_SYNC = 1 << 5
DMA_ATTR_MMIO = 1 << 10
DMA_ATTR_REQUIRE_COHERENT = 1 << 12

ATTRIBUTES = DMA_ATTR_SKIP_CPU_SYNC | DMA_ATTR_MMIO | DMA_ATTR_REQUIRE_COHERENT

READ, WRITE = 1, 2
ACCESS = {DMA_BIDIRECTIONAL: READ | WRITE, DMA_TO_DEVICE: READ, DMA_FROM_DEVICE: WRITE}
"""What the device may do with memory of each direction."""

MASK = PAGE_SIZE - 1

_TOP = 1 << 62  # an address below, and a range more, are far from the end of the address space
_NEVER = "dma_iova_try_alloc gave it none, or it was freed"


class DmaIovaState:
    """What stands for a range. The caller makes it, and keeps it until the range is destroyed or freed.

    Attributes:
        addr: IOVA of the first byte; 0 without a range.
        size: Bytes, as given to try_alloc; 0 without a range.
        range: The range, or None. For `usdm.dma_device`.
    """

    __slots__ = ("_ended", "addr", "range", "size")

    def __init__(self) -> None:
        self.addr = 0
        self.size = 0
        self.range: Range | None = None
        self._ended: UsdmError | None = None

    def begin(self, held: Range) -> None:
        """Have a range."""
        self.range, self.addr, self.size, self._ended = held, held.base + held.pad, held.size, None

    def end(self, reason: UsdmError | None = None) -> list[Piece]:
        """Have no range any more, for a reason that `refusal` gives; return the mappings that it had."""
        held, self.range, self.addr, self.size, self._ended = self.range, None, 0, 0, reason
        return [] if held is None else [held.links[at][2] for at in held.synced]

    def refusal(self) -> UsdmError:
        """Return why the state has no range."""
        ended = self._ended
        if isinstance(ended, errors.ForkedChild):
            return errors.ForkedChild(ended.argument, ended.value, ended.detail)
        return dma_errors.NoRange("state", self.addr, _NEVER if ended is None else f"it ended: {ended}")

    def info(self) -> dict[str, int]:
        """Return what the range has: all 0 without one.

        Keys: `in_use` (1 with a range), `links`, `synced` (links that the device sees), `mappings` (of the IOMMU, one a
        synced link), `reserved` (bytes of IOVAs, in whole granules).
        """
        held = self.range
        if held is None:
            return {"in_use": 0, "links": 0, "synced": 0, "mappings": 0, "reserved": 0}
        synced = len(held.synced)
        return {"in_use": 1, "links": len(held.links), "synced": synced, "mappings": synced, "reserved": held.length}


class Range:
    """Reserved IOVAs. `offset` of a link counts from the first byte, which lies `pad` bytes into the first granule.

    A link is noted by `link`, and mapped by `sync`, by exactly one call to the kernel. A refused call changes nothing,
    but for what `DmaDevice.sync` and `DmaDevice.unlink` tell. The domain's lock is held in every method.

    Attributes:
        base: The first IOVA, a multiple of 4 KiB.
        pad: Offset of the first byte in its granule.
        size: Bytes, as asked for.
        length: Bytes that are reserved: whole granules.
        links: Offset -> end, direction, and the mapping that it is or will be.
        synced: Offsets of links that are mapped.
    """

    __slots__ = ("_starts", "_tail", "base", "device", "domain", "length", "links", "pad", "size", "synced", "whole")

    def __init__(self, device: object, domain: Domain, base: int, pad: int, size: int, *, whole: bool) -> None:
        """Begin without links; `whole`: they must consist of whole granules."""
        self.device = device
        self.domain = domain
        self.base = base
        self.pad = pad
        self.size = size
        self.length = granules(pad + size)
        self.whole = whole
        self.links: dict[int, tuple[int, int, Piece]] = {}
        self.synced: set[int] = set()
        self._starts: list[int] = []  # offsets of the links, ascending
        self._tail = 0  # where the last link ends

    def link(self, virt: int, offset: int, size: int, direction: int, attrs: int = 0) -> None:
        """Put memory into the range.

        Raises:
            UsdmError: As `DmaDevice.link`.
        """
        start, end, tail = self.pad + offset, offset + size, self._tail
        # The usual case: the next whole granules, or the last link. A bool equals an integer, and is refused.
        if (
            type(size) is not int
            or type(offset) is not int
            or type(direction) is not int
            or type(attrs) is not int
            or attrs
            or (virt | start | self.pad + tail) & MASK
            or not tail <= offset < end <= self.size
            or (size & MASK and self.whole)
            or not 0 < virt < _TOP
            or direction not in ACCESS
        ):
            self._check(virt, offset, size, direction, attrs)
            direction, into = int(direction), start & MASK
            virt, start, size = virt - into, start - into, size + into
        self.links[offset] = end, direction, (ACCESS[direction], virt, self.base + start, size + MASK & ~MASK)
        if end > tail:
            self._tail = end
            self._starts.append(offset)
        else:
            insort(self._starts, offset)

    def _check(self, virt: int, offset: int, size: int, direction: int, attrs: int) -> None:
        """Refuse a link that breaks a rule."""
        check.address("virt", virt)
        self.check_place("size", size, offset)
        check_access(direction, attrs)
        at, end = self.pad + offset, offset + size
        if offset and virt & MASK:
            raise dma_errors.MemoryNotAtGranule(
                "virt", virt, f"the merge boundary is {MASK:#x}, the offset {offset:#x}"
            )
        if offset and at & MASK:
            detail = f"its IOVA is {self.base + at:#x}, the merge boundary {MASK:#x}"
            raise dma_errors.OffsetNotAtGranule("offset", offset, detail)
        if virt & MASK != at & MASK:
            raise dma_errors.FirstOffset("virt", virt, f"the range was allocated for the offset {self.pad:#x}")
        index = bisect_left(self._starts, offset)
        for near in self._starts[max(0, index - 1) : index + 1]:
            if offset < self.links[near][0] and near < end:
                raise dma_errors.LinkOverlap("offset", offset, f"{near:#x} to {self.links[near][0]:#x} is linked")
        if index and (self.pad + self.links[self._starts[index - 1]][0]) & MASK:
            before = self._starts[index - 1]
            detail = f"the link at {before:#x} ends at {self.links[before][0]:#x}, not at the merge boundary {MASK:#x}"
            raise dma_errors.EndNotAtGranule("offset", offset, detail)
        if index < len(self._starts) and (self.pad + end) & MASK:
            detail = f"the link at {self._starts[index]:#x} is behind it; the merge boundary is {MASK:#x}"
            raise dma_errors.EndNotAtGranule("size", size, detail)
        if self.whole:
            check_whole(virt, size, attrs)
        if virt + size > (1 << 64):
            raise errors.RangeOverflow("virt", virt, f"size {size:#x}")

    def sync(self, offset: int, size: int) -> None:
        """Have the device see links: map those that are not mapped yet, all or none.

        Raises:
            UsdmError: As `DmaDevice.sync`.
        """
        links, synced = self.links, self.synced
        new = [at for at in self._whole(offset, size) if at not in synced]
        try:
            self.domain.map_all([links[at][2] for at in new])
        except errors.UsdmError as error:
            synced.update(new[: getattr(error, "left", 0)])
            raise
        synced.update(new)

    def unlink(self, offset: int, size: int, direction: int, attrs: int = 0) -> None:
        """End whole links that follow each other.

        Raises:
            UsdmError: As `DmaDevice.unlink`.
        """
        check_access(direction, attrs)
        starts = self._whole(offset, size)
        for at in starts:
            if self.links[at][1] != direction:
                detail = f"it was {self.links[at][1]} for the link at {at:#x}"
                raise dma_errors.WrongDirection("dir", direction, detail)
        mapped = [self.links[at][2] for at in starts if at in self.synced]
        missing = 0
        if mapped:
            missing = self.domain.unmap(mapped[0], mapped[-1], len(mapped), sum(piece[3] for piece in mapped))
        for at in starts:
            del self.links[at]
        self.synced.difference_update(starts)
        first = bisect_left(self._starts, offset)
        del self._starts[first : first + len(starts)]
        self._tail = self.links[self._starts[-1]][0] if self._starts else 0
        if missing:
            detail = f"{missing:#x} bytes at offset {offset:#x}, size {size:#x}, were not mapped any more"
            raise errors.UnmapFailed("offset", offset, errno.ENOENT, detail)

    def check_only(self, mapped_len: int) -> None:
        """Refuse when something is linked behind `mapped_len`."""
        if self._tail > mapped_len:
            last = self._starts[-1]
            detail = f"{len(self._starts)} links, the last one from {last:#x} to {self._tail:#x}"
            raise dma_errors.StillLinked("mapped_len" if mapped_len else "state", mapped_len, detail)

    def check_place(self, argument: str, size: int, offset: int = 0) -> None:
        """Refuse a part that is empty or not inside the range; `argument` is the name of its size."""
        check.integer("offset", offset)
        if check.integer(argument, size) == 0:
            raise errors.BadSize(argument, size)
        if offset + size > self.size:
            name, value = ("offset", offset) if offset >= self.size else (argument, size)
            raise dma_errors.OutsideRange(name, value, f"{offset:#x} to {offset + size:#x}; it has {self.size:#x}")

    def _whole(self, offset: int, size: int) -> list[int]:
        """Return the offsets of the links that a part of the range consists of."""
        self.check_place("size", size, offset)
        found: list[int] = []
        links, at, end = self.links, offset, offset + size
        while at < end and at in links:
            found.append(at)
            at = links[at][0]
        if at > end:
            raise dma_errors.PartOfLink("size", size, f"the link at {found[-1]:#x} ends at {at:#x}")
        if at < end:
            index = bisect_left(self._starts, at)
            before = self._starts[index - 1] if index else at
            if index and at < links[before][0]:
                raise dma_errors.PartOfLink("offset", at, f"the link is {before:#x} to {links[before][0]:#x}")
            raise dma_errors.NotLinked("offset", at, f"asked for is {offset:#x} to {end:#x}")
        return found


def granules(size: int) -> int:
    """Return `size` rounded up to whole granules."""
    return (size + MASK) & ~MASK


def check_access(direction: int, attrs: int) -> None:
    """Refuse a direction or attributes; raises `BadDirection`, `BadAttributes`, `BadArgument`."""
    if not isinstance(direction, int) or isinstance(direction, bool) or direction not in ACCESS:
        raise dma_errors.BadDirection("dir", direction)
    if check.integer("attrs", attrs) & ~ATTRIBUTES:
        raise dma_errors.BadAttributes("attrs", attrs)


def check_whole(virt: int, size: int, attrs: int) -> None:
    """Refuse memory that the kernel would have an untrusted device see through a bounce buffer."""
    if (virt | size) & MASK:
        forbidden = attrs & (DMA_ATTR_MMIO | DMA_ATTR_REQUIRE_COHERENT)
        kind = dma_errors.BounceRefused if forbidden else dma_errors.BounceBuffer
        raise kind("virt", virt, f"size {size:#x}; the granule is {PAGE_SIZE:#x}")
