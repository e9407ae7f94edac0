"""Devices of the two-step DMA mapping API: what `dev` is in `usdm.dma_iova`, for Python. Here a violation raises."""

from __future__ import annotations

from usdm import check, dma_errors, errors
from usdm.dma_range import ACCESS, MASK, DmaIovaState, Range, check_access, check_whole, granules
from usdm.limits import MAX_U64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from usdm.dma_domain import Domain
    from usdm.driver import Usdm

_SWIOTLB_FLAG = 1 << 63  # of the size; the kernel keeps it for itself


class DmaDevice:
    """A device that memory is mapped for, in two steps (try_alloc, link, sync) or in one (map_single).

    All methods may be called from any thread. A call that breaks a rule changes nothing, and one that the kernel
    refuses neither, but for what `sync`, `unlink`, `destroy` and `unmap_single` tell: a mapping that the kernel does
    not take back stays, and one that was not there any more (ENOENT) is forgotten.

    Attributes:
        dma_mask: The highest IOVA that the device reaches.
        untrusted: It must see no byte beside the memory it is given: only whole granules can be linked or mapped.
    """

    def __init__(self, *, dma_mask: int = MAX_U64, untrusted: bool = False) -> None:
        """Begin without ranges.

        Raises:
            BadArgument: `dma_mask` is no 64-bit integer.
        """
        self.dma_mask = check.integer("dma_mask", dma_mask)
        self.untrusted = untrusted

    def _domain(self) -> Domain:
        """Return the IOVA space that the device is in; raises `UsdmError` when it is in none."""
        raise NotImplementedError

    @property
    def merge_boundary(self) -> int:
        """Bytes of a granule, less 1: where one link ends and the next one begins is a multiple of a granule."""
        return MASK

    # ---- ranges

    def try_alloc(self, state: DmaIovaState, virt: int, size: int) -> None:
        """Reserve IOVAs for `size` bytes, of which the first ones will be at `virt`.

        Args:
            state: Has no range; gets this one.
            virt: Only its offset in its granule matters: the range's first byte has the same.
            size: Bytes, 1 to 2**63 - 1.

        Raises:
            BadArgument: An argument has another type.
            RangeInUse: The state has a range.
            BadSize: `size` is 0.
            TooLarge: `size` has bit 63, where the kernel keeps a flag.
            NotRegistered: No container is registered.
            NoIommuMode: The container has no IOMMU.
            NoIovaSpace: No gap up to the DMA mask is large enough.
            DomainEnded: The IOAS is gone.
            ForkedChild: The device belongs to the parent process.
        """
        if not isinstance(state, DmaIovaState):
            raise errors.BadArgument("state", state, "it is no DmaIovaState")
        pad = check.integer("virt", virt) & MASK
        if check.integer("size", size) == 0:
            raise errors.BadSize("size", size)
        if size & _SWIOTLB_FLAG:
            raise errors.TooLarge("size", size, "bit 63 is a flag of the kernel")
        domain = self._domain()
        with domain.lock:
            domain.refuse_ended()
            if state.range is not None:
                raise dma_errors.RangeInUse("state", state.addr, f"its size is {state.size:#x}")
            base = domain.granules.allocate(granules(pad + size), self.dma_mask)
            state.begin(Range(self, domain, base, pad, size, whole=self.untrusted))
            domain.add(base, state)

    def link(self, state: DmaIovaState, virt: int, offset: int, size: int, direction: int, attrs: int = 0) -> None:
        """Put memory of the program into a range; the device sees it from `sync` on.

        Args:
            state: Has a range.
            virt: The memory. It must stay valid until it is unlinked.
            offset: Where in the range.
            size: Bytes.
            direction: What the device may do with it.
            attrs: `DMA_ATTR_` flags. None of them changes the mapping.

        Raises:
            BadArgument, NullAddress: An argument has another type, or is NULL.
            NoRange, WrongDevice, ForkedChild: There is no such range, or not any more, or it is another device's.
            BadSize, OutsideRange: It is empty, or not in the range.
            BadDirection, BadAttributes: As they say.
            MemoryNotAtGranule, OffsetNotAtGranule, FirstOffset, EndNotAtGranule: It breaks the merge boundary.
            LinkOverlap: Another link is there.
            BounceBuffer, BounceRefused: The device is untrusted, and these are no whole granules.
            RangeOverflow: The memory ends beyond 64 bits.
        """
        held = state.range if isinstance(state, DmaIovaState) else None
        if held is None or held.device is not self:
            self._refuse(state)
        lock = held.domain.lock
        lock.acquire()  # a with statement takes twice as long
        try:
            if state.range is not held:
                self._refuse(state)
            held.link(virt, offset, size, direction, attrs)
        except TypeError as error:
            if not isinstance(error, errors.UsdmError):
                check.address("virt", virt)
                _integers(offset=offset, size=size)
                check_access(direction, attrs)
            raise
        finally:
            lock.release()

    def sync(self, state: DmaIovaState, offset: int, size: int) -> None:
        """Have the device see the links of a part of the range: each one becomes a mapping.

        All of them, or none, unless the kernel refuses to take those back that were made before one failed.

        Args:
            state: Has a range.
            offset: Where the first link begins.
            size: Bytes of whole links, without a hole. Those that are synced already stay as they are.

        Raises:
            BadArgument, NoRange, WrongDevice, ForkedChild, BadSize, OutsideRange: As `link`.
            NotLinked, PartOfLink: There is a hole, or a link is cut.
            MapFailed, AddressNotAccessible: The kernel refused. The links stay, without a mapping; where it did not
                take a mapping back, a note of the error says so, and that link counts as synced.
        """
        held = self._range(state)
        with held.domain.lock:
            self._still(state, held)
            _integers(offset=offset, size=size)
            held.sync(offset, size)

    def unlink(self, state: DmaIovaState, offset: int, size: int, direction: int, attrs: int = 0) -> None:
        """Take links out of the range, all of them or none: the device does not see them any more. The range stays.

        Args:
            state: Has a range.
            offset: Where the first link begins.
            size: Bytes of whole links, without a hole; synced or not.
            direction: As they were linked.
            attrs: `DMA_ATTR_` flags.

        Raises:
            BadArgument, NoRange, WrongDevice, ForkedChild, BadSize, OutsideRange, BadAttributes: As `link`.
            NotLinked, PartOfLink: As `sync`.
            BadDirection, WrongDirection: It is no direction, or not that of the links.
            UnmapFailed: The kernel refused, and the links are as before; or (ENOENT) somebody had unmapped them beside
                this process's USDM, and they are forgotten.
        """
        held = self._range(state)
        with held.domain.lock:
            self._still(state, held)
            _integers(offset=offset, size=size)
            held.unlink(offset, size, direction, attrs)

    def free(self, state: DmaIovaState) -> None:
        """Give the IOVAs of a range back, in which nothing is linked.

        Args:
            state: the range's state.

        Raises:
            NoRange, WrongDevice, ForkedChild: As `link`.
            StillLinked: Something is linked.
        """
        held = self._range(state)
        with held.domain.lock:
            self._still(state, held)
            held.check_only(0)
            self._end(state, held)

    def destroy(self, state: DmaIovaState, mapped_len: int, direction: int, attrs: int = 0) -> None:
        """Take all links out of a range by one call to the kernel, and give its IOVAs back.

        Args:
            state: Has a range.
            mapped_len: Where the last link ends; the links before it have no hole. 0 when nothing is linked.
            direction: As they were linked.
            attrs: `DMA_ATTR_` flags.

        Raises:
            UsdmError: As `unlink`. After ENOENT the range has ended all the same.
            StillLinked: Something is linked behind `mapped_len`.
        """
        held = self._range(state)
        with held.domain.lock:
            self._still(state, held)
            check.integer("mapped_len", mapped_len)
            check_access(direction, attrs)
            if mapped_len:
                held.check_place("mapped_len", mapped_len)
            held.check_only(mapped_len)
            try:
                if mapped_len:
                    held.unlink(0, mapped_len, direction, attrs)
            except errors.UnmapFailed:
                if not held.links:
                    self._end(state, held)
                raise
            self._end(state, held)

    # ---- streaming

    def map_single(self, virt: int, size: int, direction: int, attrs: int = 0) -> int:
        """Map memory of the program at once, and return the IOVA of its first byte.

        The device sees whole granules.

        Args:
            virt: the memory's virtual address.
            size: bytes.
            direction: what the device may do with it.
            attrs: `DMA_ATTR_...`, or 0.

        Raises:
            BadArgument, NullAddress, BadDirection, BadAttributes: As `link`.
            BadSize, TooLarge, NotRegistered, NoIommuMode, NoIovaSpace, DomainEnded, ForkedChild: As `try_alloc`.
            BounceBuffer, BounceRefused: The device is untrusted, and these are no whole granules.
            RangeOverflow: The memory ends beyond 64 bits.
            MapFailed, AddressNotAccessible: The kernel refused.
        """
        check.address("virt", virt)
        if check.integer("size", size) == 0:
            raise errors.BadSize("size", size)
        if size & _SWIOTLB_FLAG:
            raise errors.TooLarge("size", size)
        check_access(direction, attrs)
        if virt + size - 1 > MAX_U64:
            raise errors.RangeOverflow("virt", virt, f"size {size:#x}")
        if self.untrusted:
            check_whole(virt, size, attrs)
        domain = self._domain()
        with domain.lock:
            domain.refuse_ended()
            return domain.stream(ACCESS[direction], virt, size, int(direction), self.dma_mask)

    def unmap_single(self, addr: int, size: int, direction: int, attrs: int = 0) -> None:
        """End a mapping of `map_single`, which had this IOVA, size and direction.

        Args:
            addr: the IOVA that `map_single` returned.
            size: bytes, as they were mapped.
            direction: as it was mapped.
            attrs: `DMA_ATTR_...`, or 0.

        Raises:
            BadArgument, BadDirection, BadAttributes: As `link`.
            NotRegistered, NoIommuMode, DomainEnded, ForkedChild: There is nothing to unmap any more.
            NotStreamed, StreamedSize, WrongDirection: There is no such mapping.
            UnmapFailed: The kernel refused, and it is as before; or (ENOENT) it was not there any more, and is
                forgotten.
        """
        _integers(addr=addr, size=size)
        check_access(direction, attrs)
        domain = self._domain()
        with domain.lock:
            domain.refuse_ended()
            domain.end_stream(addr, size, direction)

    # ---- the state

    def _range(self, state: DmaIovaState) -> Range:
        """Return the range of a state, as it is without the lock."""
        held = state.range if isinstance(state, DmaIovaState) else None
        if held is None or held.device is not self:
            self._refuse(state)
        return held

    def _still(self, state: DmaIovaState, held: Range) -> None:
        """Look again with the lock held: another thread may have ended the range."""
        if state.range is not held:
            self._refuse(state)

    def _refuse(self, state: DmaIovaState) -> NoReturn:
        """Raise what is wrong with a state."""
        if not isinstance(state, DmaIovaState):
            raise errors.BadArgument("state", state, "it is no DmaIovaState")
        held = state.range
        if held is not None and held.device is not self:
            raise dma_errors.WrongDevice("dev", repr(self))
        raise state.refusal()

    def _end(self, state: DmaIovaState, held: Range) -> None:
        state.end()
        held.domain.remove(held.base, held.length)


class VfioDma(DmaDevice):
    """A device behind the container that is registered with a `Usdm` instance.

    IOVAs come out of that instance's IOVA space. Ranges and mappings end with the last unregistration, with `close`,
    and in a forked child.
    """

    def __init__(self, usdm: Usdm | None = None, *, dma_mask: int = MAX_U64, untrusted: bool = False) -> None:
        """Take the instance, None for the process's own one of `usdm.qae_mem`; something can be registered later.

        Raises:
            BadArgument: It is no `Usdm`, or `dma_mask` no 64-bit integer.
        """
        super().__init__(dma_mask=dma_mask, untrusted=untrusted)
        from usdm.driver import Usdm

        if usdm is None:
            from usdm import qae_mem

            usdm = qae_mem.default_instance()
        elif not isinstance(usdm, Usdm):
            raise errors.BadArgument("usdm", usdm, "it is no Usdm")
        self._usdm = usdm

    def _domain(self) -> Domain:
        return self._usdm.dma_domain()


def _integers(**values: int) -> None:
    for name, value in values.items():
        check.integer(name, value)
